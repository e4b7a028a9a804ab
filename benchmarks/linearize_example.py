"""The worked example of docs/linearization.md: a folder of a decoder to two files that generate.

`python -m benchmarks.linearize --only example` takes the small model of the copy task: linearize,
train, audit, export, generate. A few minutes of training; `decoder` has the recipe in full.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks.kept_figures import Figures, kept
from benchmarks.linearize_decode import graphs_of, in_torch
from benchmarks.linearize_recipes import NextTokens
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.small_models import copying, get
from regraft.auditing import audit_module
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.passes.protocol import Samples
from regraft.passes.recovery.data import Data

Array = np.ndarray[Any, Any]

_VERSION = 1
_TOPIC = "linearize"
TRANSFER, RECOVER = 150, 200
PASSES = (
    "canonicalize,fuse,"
    "linearize-attention{{window=8,loss=weights,steps={transfer}}},"
    "recover{{adapter=lora,loss=kl,steps={recover},rate=0.002,precision=fp32}}"
)
_LETTERS, _ROWS = 16, 8
_APART = 1e-4
"""Logits of two layers in f32, over a whole text and token by token."""


@dataclass(frozen=True, slots=True)
class Example:
    """What came of it.

    Attributes:
        module: The linearized decoder.
        report: The audit.
        tokens: That ONNX Runtime generates, [B, count].
        logits: They were taken from, f32[B, count, V].
        state_bytes: Behind the prompt, and behind all tokens.
    """

    module: Module
    report: Mapping[str, Any]
    tokens: Array
    logits: Array
    state_bytes: tuple[int, int]


def example(
    source: Path, data: Data, samples: Samples, prompt: Array, count: int, work: Path,
    *, transfer: int = TRANSFER, recover: int = RECOVER,
) -> Example:  # fmt: skip
    """Linearizes a folder of a decoder, trains it, audits it, and generates from two files.

    Args:
        source: The folder.
        data: Batches of `input_ids` and `attention_mask`.
        samples: Text that the audit looks at.
        prompt: i64[B, S].
        count: Tokens to generate.
        work: An empty folder.
        transfer: Updates of the feature maps.
        recover: Updates of adapters.
    """
    original = regraft.load(source)
    module = original.clone()
    passes = PASSES.format(transfer=transfer, recover=recover)
    regraft.apply(module, passes, check="off", training=data)
    report = audit_module(module, original, samples)
    prefill, decode = graphs_of(module)
    files = [work / "prefill.onnx", work / "decode.onnx"]
    for graph, file in zip((prefill, decode), files, strict=True):
        regraft.save(graph, file)
    run, step = (OrtRunner(file) for file in files)
    held_back = {
        str(value.name): np.zeros(
            [size if isinstance(size, int) else len(prompt) for size in value.shape or ()],
            np.float32 if value.dtype is None else value.dtype.numpy,
        )
        for value in prefill.graph.inputs
        if value.name != "input_ids"
    }
    ids, tokens, logits, sizes = prompt, [], [], []
    for _ in range(count):
        found = run({"input_ids": ids, **held_back})
        held_back = {state.input: found[state.output] for state in prefill.states}
        sizes.append(sum(array.nbytes for array in held_back.values()))
        logits.append(found["logits"][:, -1])
        tokens.append(logits[-1].argmax(-1))
        ids, run = tokens[-1][:, None], step
    return Example(module, report, np.stack(tokens, 1), np.stack(logits, 1), (sizes[0], sizes[-1]))


def _figures(settings: Settings) -> Figures:
    def make() -> Figures:
        texts = next(copying.held_out(_ROWS, _ROWS, _LETTERS))
        prompt = texts["input_ids"][:, : _LETTERS + 1]
        samples = [{name: texts[name] for name in ("input_ids", "attention_mask", "labels")}]
        with tempfile.TemporaryDirectory() as work:
            found = example(
                get("copy-lm", 0).folder, NextTokens("copy-lm", 0), samples, prompt, _LETTERS,
                Path(work),
            )  # fmt: skip
        wanted, expected = in_torch(found.module, prompt, _LETTERS)
        return {
            "same": int((found.tokens == wanted).sum()), "tokens": int(wanted.size),
            "apart": float(np.abs(found.logits - expected).max()),
            "right": float((found.tokens == prompt[:, :_LETTERS]).mean()),
            "bytes": list(found.state_bytes), "verdict": found.report["verdict"],
            "measure": found.report["measure"], "ablations": found.report["ablations"],
        }  # fmt: skip

    return kept(_TOPIC, f"example-{TRANSFER}-{RECOVER}", _VERSION, settings, make)


def _example(settings: Settings) -> Iterator[Row]:
    found = _figures(settings)
    parts = ", ".join(f"{name} {value:.3f}" for name, value in found["ablations"].items())
    yield shown(f"example: audit, {found['measure']}", found["ablations"]["both"], "",
                f"verdict {found['verdict']}; {parts}")  # fmt: skip
    yield held(
        "example: two files generate the tokens of PyTorch", found["same"] == found["tokens"],
        f"{found['same']} of {found['tokens']} tokens",
    )  # fmt: skip
    yield at_most("example: logits apart", found["apart"], _APART, "")
    yield at_least("example: letters copied", found["right"], 0.5, "", "chance 0.06")
    yield at_most("example: bytes of states behind all tokens", found["bytes"][1],
                  found["bytes"][0], "")  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("example", "linearize, train, audit, export, generate", _example),
)
