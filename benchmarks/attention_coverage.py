"""Attention layers that `replace-softmax` rewrites, from ONNX files and from PyTorch.

The ONNX side is every fixture that was exported; the PyTorch side captures the same families, built
by `transformers` and `timm`, so that both are held against the same stated truth. Attention that is
no softmax of scores over positions has to be named with the reason. Identity parameters have to
leave models as they are: both sides run in ONNX Runtime, the difference is held against what a
conversion may change.

`python -m benchmarks.attention_coverage NAME …` prints a line for each fixture or family.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

import regraft
from benchmarks.fixtures import store
from benchmarks.fixtures.truth import Truth
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most
from regraft.backends.onnx.save import to_proto
from regraft.ir.module import Module

PASSES = "canonicalize,replace-softmax{variant=clipped,gamma=-0.03}"
WANTED = {"transformers": 25, "timm": 15}
SHOWN = 4

IDENTITIES = (
    "clipped", "gated", "entmax,alpha=1", "sinks,sink=-10000", "scalable", "temperature",
    "principled,beta=10", "two-pass",
)  # fmt: skip
IDENTICAL = (
    "bert", "roberta", "gpt2", "llama", "mistral", "t5", "vit", "whisper", "gemma2", "bloom",
)  # fmt: skip
"""Families whose outputs identity parameters are held against."""

_ERRORS = 3

RELATIVE = 1e-5
"""What an exact rewrite may change of f32 outputs, relative to the largest."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What happened to one model.

    Args:
        wanted: Layers that weigh values by a softmax of scores, as stated.
        replaced: Layers that were rewritten.
        others: Layers of other forms, as stated.
        reasons: Why layers were left.
    """

    wanted: int
    replaced: int
    others: int
    reasons: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every layer was rewritten, or named with the reason where its form forbids it."""
        return self.replaced == self.wanted and (not self.others or bool(self.reasons))


def rewritten(module: Module, truth: Truth) -> Rewritten:
    """Runs the pass on a module."""
    records = regraft.apply(module, PASSES, check="off")
    reasons = [s.reason for s in records[-1].skipped if s.reason.startswith("attention")]
    plain = sum(block.count for block in truth.attention if block.form == "dot_product")
    others = sum(block.count for block in truth.attention) - plain
    return Rewritten(plain, int(records[-1].stats["replaced"]), others, tuple(reasons))


def from_onnx(name: str) -> Rewritten:
    """Rewrites a fixture."""
    return rewritten(regraft.load(store.load(name)), store.truth(name))


def from_torch(name: str) -> Rewritten:
    """Captures a family of `transformers` or `timm` and rewrites it."""
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()  # where torchvision is installed without them, no model can be imported
    from benchmarks.fixtures.exporters import sample
    from benchmarks.fixtures.registry import FAMILIES

    family = next(each for each in FAMILIES if each.name == name)
    module = regraft.capture(family.build(), kwargs=sample(family))
    return rewritten(module, family.truth)


def _rows(kind: str, found: dict[str, dict[str, list[Rewritten]]]) -> Iterator[Row]:
    """Yields families that are rewritten as a whole, by the library they come from."""
    for library, wanted in WANTED.items():
        families = found[library]
        whole = [name for name, all_ in families.items() if all(r.is_whole for r in all_)]
        missed = [
            f"{name}: {r.replaced} of {r.wanted}" + (f", {r.reasons[0]}" if r.reasons else "")
            for name, all_ in families.items()
            for r in all_
            if not r.is_whole
        ]
        layers = sum(r.replaced for all_ in families.values() for r in all_)
        possible = sum(r.wanted for all_ in families.values() for r in all_)
        note = " | ".join(missed[:SHOWN]) or f"{layers} layers"
        yield at_least(
            f"families of {library} rewritten in every layer, from {kind}",
            len(whole), wanted, f"of {len(families)}", note,
        )  # fmt: skip
        yield at_least(
            f"layers of {library} rewritten, from {kind}", 100 * layers / max(possible, 1), 100.0,
            "%", f"{layers} of {possible}",
        )  # fmt: skip


def _onnx(settings: Settings) -> Iterator[Row]:
    found: dict[str, dict[str, list[Rewritten]]] = defaultdict(lambda: defaultdict(list))
    for name in store.names():
        if store.truth(name).attention:
            source = store.family(name)["source"]
            found[source][name.rpartition(".")[0]].append(from_onnx(name))
    yield from _rows("ONNX", found)


def _torch(settings: Settings) -> Iterator[Row]:
    found: dict[str, dict[str, list[Rewritten]]] = defaultdict(lambda: defaultdict(list))
    for name, source in torch_families():
        found[source][name].append(from_torch(name))
    yield from _rows("PyTorch", found)


def torch_families() -> list[tuple[str, str]]:
    """Returns the families with attention and the library of each."""
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    from benchmarks.fixtures.registry import FAMILIES

    return [(each.name, each.source) for each in FAMILIES if each.truth.attention]


def difference(name: str, variant: str) -> float:
    """Returns how far a variant's identity parameters move a fixture's outputs, relative."""
    module = regraft.load(store.load(name))
    regraft.apply(module, "canonicalize,fuse", check="off")
    before = _outputs(module, store.samples(name))
    (record,) = regraft.apply(module, f"replace-softmax{{variant={variant}}}", check="off")
    if not record.stats["replaced"]:
        raise RuntimeError(f"{name}: no attention was replaced")
    after = _outputs(module, store.samples(name))
    largest = max(float(np.abs(x).max()) for x in before)
    pairs = zip(before, after, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs) / largest


def _outputs(module: Module, inputs: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS
    session = ort.InferenceSession(
        to_proto(module).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(x, np.float64) for x in session.run(None, inputs)]


def _identity(settings: Settings) -> Iterator[Row]:
    for variant in IDENTITIES:
        worst, where = 0.0, ""
        families = [name for name in IDENTICAL if f"{name}.dyn18" in store.names()]
        for name in families:
            moved = difference(f"{name}.dyn18", variant)
            worst, where = max((worst, where), (moved, name))
        yield at_most(
            f"identity: {variant}", worst, RELATIVE, "of the largest output",
            f"{len(families)} families, worst {where}",
        )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("onnx", "attention layers rewritten in exported files", _onnx),
    Measurement("torch", "attention layers rewritten in captured modules", _torch),
    Measurement("identity", "identity parameters leave models as they are", _identity),
)

if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(each, from_onnx(each) if "." in each else from_torch(each), flush=True)
