"""Raising and legalizing agree: nothing is left to raise, and a legalized file comes back.

Over every fixture and every model of the core set: the passes run a second time change nothing, and
a file written for a target, loaded and raised, is the module it was written from, names aside.
"""

from collections.abc import Iterator

import onnx

import regraft
from benchmarks import models
from benchmarks.canonical_text import canonical_lines
from benchmarks.fixtures import store
from benchmarks.measure import Measurement, Row, Settings, at_most
from benchmarks.simplify_once import FUSING
from regraft.backends.onnx.save import to_proto
from regraft.ir.module import Module
from regraft.ir.text import print_module
from regraft.passes.legalize import Legalize

AGAIN = "canonicalize,fuse"
TARGETS = ("onnx", "ort-cpu")
SHOWN = 4


def corpus() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yields the models by name."""
    for name in store.names():
        yield name, store.load(name)
    for model in models.CORE:
        yield model.name, onnx.load(models.find(model))


def unstable(module: Module) -> str:
    """Returns what a second run of the passes changes in a fused module, or ""."""
    before = print_module(module)
    copy = module.clone()
    records = regraft.apply(copy, AGAIN, check="off")
    changed = [f"{record.name} {dict(record.stats)}" for record in records if record.changed]
    if changed:
        return "; ".join(changed)
    return "" if print_module(copy) == before else "the text is another one"


def changed_by(module: Module, target: str) -> str:
    """Returns the first line that a round trip through a target's file changes, or ""."""
    legal = module.clone()
    regraft.apply(legal, [Legalize(target)], check="off")
    loaded = regraft.load(to_proto(legal, profile=target))
    regraft.apply(loaded, FUSING, check="off")
    before, after = canonical_lines(module), canonical_lines(loaded)
    for left, right in zip(before, after, strict=False):
        if left != right:
            return f"`{right}` was `{left}`"
    return "" if len(before) == len(after) else f"{len(after)} lines, {len(before)} before"


def measure(settings: Settings) -> Iterator[Row]:
    """Yields one row per property."""
    wrong: dict[str, list[str]] = {"idempotent": [], **{target: [] for target in TARGETS}}
    count = 0
    for name, proto in corpus():
        module = regraft.load(proto)
        regraft.apply(module, FUSING, check="off")
        found = {"idempotent": unstable(module)}
        found |= {target: changed_by(module, target) for target in TARGETS}
        for key, reason in found.items():
            if reason:
                wrong[key].append(f"{name}: {reason}")
        count += 1
    for key, reasons in wrong.items():
        name = (
            "models that a second canonicalize and fuse change"
            if key == "idempotent"
            else f"models whose {key} file is raised to another module"
        )
        more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        note = " | ".join(reasons[:SHOWN]) + more if reasons else f"of {count}"
        yield at_most(name, len(reasons), 0, "models", note)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("raise", "idempotence, and legalized files raised back", measure),
)
