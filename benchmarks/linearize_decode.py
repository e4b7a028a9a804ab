"""A small decoder, linearized and trained, that generates with a memory of constant size.

Hybrid attention with a window of 8 in place of softmax, transfer and adapters, `carry-states`, and
two graphs, one for texts of any length and one for a token, that share their
states. The tokens are those of PyTorch, which has no states and reads the whole text every time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import regraft
from benchmarks.linearize_recipes import Recipe, trained
from benchmarks.measure import Measurement, Row, Settings, at_most, held
from benchmarks.small_models import copying
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.torch.net_runner import NetRunner
from regraft.ir.freeze import freeze
from regraft.ir.module import Module

Array = np.ndarray[Any, Any]

COPY = Recipe(transfer=300, lora=500, window=8, loss="weights", dropout=0.5)
"""The recipe of the copy task: weights are transferred before the window is added, and it is off in
some steps of the second stage.
"""
_LETTERS = 16
_ROWS = 16
_LONG = 400
_STEP_BAR, _APART = 1.3, 1e-4


def graphs_of(module: Module) -> tuple[Module, Module]:
    """Returns the graph for texts of any length, and the one for a token, both with states."""
    prefill = module.clone()
    regraft.apply(prefill, "carry-states,canonicalize", check="off")
    decode = prefill.clone()
    freeze(decode, {"seq": 1})
    regraft.apply(decode, "canonicalize", check="off")
    return prefill, decode


class Generator:
    """Two sessions of ONNX Runtime that hand states to each other."""

    def __init__(self, module: Module) -> None:
        graphs = graphs_of(module)
        self.states = graphs[0].states
        self._first = {
            value.name: (value.shape, value.dtype)
            for value in graphs[0].graph.inputs
            if value.name != "input_ids"
        }
        self._prefill, self._decode = (OrtRunner(to_proto(each)) for each in graphs)
        self.held: dict[str, Array] = {}

    def begin(self, ids: Array) -> Array:
        """Returns the logits behind a text, f32[B, V]."""
        self.held = {
            str(name): np.zeros(
                [size if isinstance(size, int) else len(ids) for size in shape or ()],
                np.float32 if dtype is None else dtype.numpy,
            )
            for name, (shape, dtype) in self._first.items()
        }
        return self._run(self._prefill, ids)

    def step(self, ids: Array) -> Array:
        """Returns the logits behind one more token."""
        return self._run(self._decode, ids[:, None])

    def _run(self, run: OrtRunner, ids: Array) -> Array:
        found: Mapping[str, Any] = run({"input_ids": ids, **self.held})
        self.held = {state.input: found[state.output] for state in self.states}
        return np.asarray(found["logits"][:, -1])

    def generate(self, ids: Array, count: int) -> tuple[Array, Array]:
        """Returns the likeliest tokens, [B, count], and the logits that they were taken from."""
        logits, made = self.begin(ids), []
        seen = [logits]
        for number in range(count):
            made.append(logits.argmax(-1))
            if number + 1 < count:
                logits = self.step(made[-1])
                seen.append(logits)
        return np.stack(made, 1), np.stack(seen, 1)

    @property
    def state_bytes(self) -> int:
        """Bytes of all states."""
        return sum(array.nbytes for array in self.held.values())


def in_torch(module: Module, ids: Array, count: int) -> tuple[Array, Array]:
    """Returns the same of PyTorch, which reads the whole text for every token."""
    run, seen = NetRunner(regraft.to_torch(module)), []
    for _ in range(count):
        found = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        seen.append(np.asarray(found["logits"])[:, -1])
        ids = np.concatenate([ids, seen[-1].argmax(-1)[:, None]], axis=1)
    return ids[:, -count:], np.stack(seen, 1)


def _decoder(settings: Settings) -> Iterator[Row]:
    module = trained("copy-lm", 0, COPY, settings)
    batch = next(copying.held_out(_ROWS, _ROWS, _LETTERS))
    ids = batch["input_ids"][:, : _LETTERS + 1]
    generator = Generator(module)
    tokens, logits = generator.generate(ids, _LETTERS)
    wanted, expected = in_torch(module, ids, _LETTERS)
    same = int((tokens == wanted).sum())
    yield held(
        "tokens of prefill and decode in ONNX Runtime are those of PyTorch",
        bool((tokens == wanted).all()), f"{same} of {tokens.size} tokens",
    )  # fmt: skip
    yield at_most(
        "logits apart", float(np.abs(logits - expected).max()), _APART, "",
        f"largest {np.abs(expected).max():.3g}",
    )  # fmt: skip
    right = (tokens == ids[:, :_LETTERS]).mean()
    yield held("it copies", bool(right >= 0.5), f"{100 * right:.0f} % of the letters")
    before = generator.state_bytes
    spent = []
    for _ in range(2):
        start = time.process_time()
        for _ in range(_LONG):
            generator.step(tokens[:, 0])
        spent.append(time.process_time() - start)
    yield at_most(
        "bytes of states behind 800 more tokens", generator.state_bytes, before, "",
        f"{before} bytes for {_ROWS} texts",
    )  # fmt: skip
    yield at_most(
        "time of 400 steps, the second against the first", spent[1] / spent[0], _STEP_BAR, "x",
        f"{1e3 * spent[1] / _LONG:.2f} ms a step",
    )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("decoder", "a linearized decoder generates with states", _decoder),
)
