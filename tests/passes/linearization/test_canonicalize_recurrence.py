"""`canonicalize-recurrence`: S6, gated networks, linear attention, written out, as one operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from regraft.ir.builder import Builder
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import activation, arithmetic, functions, gathering, linalg, reshaping, slicing
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]

B, D, N, T = 2, 3, 4, 5


class _Writer:
    """A module with what steps are written with."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.module = Module(Graph())
        self.b = Builder(self.module.graph)
        self.inputs = {
            name: self.module.graph.add_input(name, TensorType(DType.F32, shape))
            for name, shape in inputs.items()
        }
        rng = np.random.default_rng(6)
        self.feeds = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()
        }

    def at(self, x: Value, number: int, axis: int) -> Value:
        """Returns one position."""
        return self.b.op(gathering.gather, x, self.b.constant(np.int64(number)), axis=axis)

    def states(self, factors: Value, gains: Value, first: Value | None, axis: int) -> list[Value]:
        """Returns the states, written out."""
        found: list[Value] = []
        for t in range(T):
            gain = self.at(gains, t, axis)
            before = found[-1] if found else first
            if before is None:
                found.append(gain)
                continue
            scaled = self.b.op(arithmetic.mul, self.at(factors, t, axis), before)
            found.append(self.b.op(arithmetic.add, scaled, gain))
        return found

    def stacked(self, rows: list[Value], axis: int) -> None:
        """Makes rows, one behind the other, the output."""
        lined = [self.b.op(reshaping.unsqueeze, row, axes=(axis,)) for row in rows]
        self.module.graph.add_output("y", self.b.op(slicing.concat, *lined, axis=axis))

    def rewritten(self) -> tuple[Array, Array]:
        """Returns the result before and after, and asserts that one operator makes it."""
        before = evaluate(self.module, self.feeds, oracle=True)
        (record,) = regraft.apply(self.module, "canonicalize-recurrence")
        assert (record.stats["recurrences"], record.stats["steps"]) == (1, T)
        assert [n.op for n in self.module.graph].count(linear_attention) == 1
        assert not any(node.op is arithmetic.add for node in self.module.graph)
        after = evaluate(self.module, self.feeds, oracle=True)
        for name, array in before.items():
            np.testing.assert_allclose(after[name], array, atol=1e-6)
        return before["y"], after["y"]


@pytest.mark.parametrize("has_state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("keeps_last", [False, True], ids=["", "state out"])
def test_a_selective_state_space_is_the_operator(has_state: bool, keeps_last: bool) -> None:
    """S6: h = exp(delta A) h + delta B x, y = C h."""
    w = _Writer(
        delta=(B, D, T, 1), A=(1, D, 1, N), B=(B, 1, T, N), x=(B, D, T, 1), C=(B, T, N), h=(B, D, N)
    )
    v, b = w.inputs, w.b
    factors = b.op(functions.exp, b.op(arithmetic.mul, v["delta"], v["A"]))
    gains = b.op(arithmetic.mul, b.op(arithmetic.mul, v["delta"], v["B"]), v["x"])
    states = w.states(factors, gains, v["h"] if has_state else None, 2)
    rows = []
    for t, state in enumerate(states):
        column = b.op(reshaping.unsqueeze, w.at(v["C"], t, 1), axes=(2,))
        rows.append(b.op(reshaping.squeeze, b.op(linalg.matmul, state, column), axes=(2,)))
    w.stacked(rows, 2)
    if keeps_last:
        w.module.graph.add_output("last", states[-1])
    before, _ = w.rewritten()
    f = w.feeds  # the definition, independent of what was written out
    h = f["h"].astype(np.float64) if has_state else np.zeros((B, D, N))
    for t in range(T):
        step = f["delta"][:, :, t].astype(np.float64)
        h = np.exp(step * f["A"][:, :, 0]) * h + step * f["B"][:, :, t] * f["x"][:, :, t]
        np.testing.assert_allclose(before[:, :, t], (h @ f["C"][:, t, :, None])[..., 0], atol=1e-6)


def test_a_gated_network_is_the_operator() -> None:
    """h = sigmoid(z) h + u, read as it is."""
    w = _Writer(z=(B, T, D), u=(B, T, D), h=(B, D))
    factors = w.b.op(activation.sigmoid, w.inputs["z"])
    w.stacked(w.states(factors, w.inputs["u"], w.inputs["h"], 1), 1)
    before, _ = w.rewritten()
    h = w.feeds["h"].astype(np.float64)
    for t in range(T):
        h = h / (1 + np.exp(-w.feeds["z"][:, t].astype(np.float64))) + w.feeds["u"][:, t]
        np.testing.assert_allclose(before[:, t], h, atol=1e-6)


def test_gated_linear_attention_is_the_operator() -> None:
    """S = exp(g) S + v k^T of one head, y = S q: values are the channels."""
    w = _Writer(g=(B, 1, T, N), k=(B, 1, T, N), v=(B, D, T, 1), q=(B, T, N), S=(B, D, N))
    b, v = w.b, w.inputs
    gains = b.op(arithmetic.mul, v["k"], v["v"])
    zero = b.op(arithmetic.sub, gains, gains)
    factors = b.op(functions.exp, b.op(arithmetic.add, v["g"], zero))
    states = w.states(factors, gains, v["S"], 2)
    rows = [
        b.op(linalg.matmul, state, b.op(reshaping.unsqueeze, w.at(v["q"], t, 1), axes=(2,)))
        for t, state in enumerate(states)
    ]
    w.module.graph.add_output("y", b.op(slicing.concat, *rows, axis=2))
    before = evaluate(w.module, w.feeds, oracle=True)["y"]
    (record,) = regraft.apply(w.module, "canonicalize-recurrence")
    assert record.stats["recurrences"] == 1
    after = evaluate(w.module, w.feeds, oracle=True)["y"]
    np.testing.assert_allclose(after, before, atol=1e-6)
    f = {name: array.astype(np.float64) for name, array in w.feeds.items()}
    S = f["S"].swapaxes(1, 2)[:, None]  # [B, 1, N, D]
    operands = [np.swapaxes(f[name], 1, 1) for name in ("k", "g")]
    for t in range(T):
        key, gate = (x[:, :, t, :, None] for x in operands)
        S = np.exp(gate) * S + key * f["v"][:, None, :, t, 0][:, :, None]
        np.testing.assert_allclose(after[..., t], (f["q"][:, t, None] @ S[:, 0])[:, 0], atol=1e-6)


def test_what_is_left_alone_says_why() -> None:
    w = _Writer(z=(B, T, D), u=(B, T, D), h=(B, D))
    w.stacked(w.states(w.inputs["z"], w.inputs["u"], w.inputs["h"], 1), 1)
    (record,) = regraft.apply(w.module, "canonicalize-recurrence")
    assert record.stats["recurrences"] == 0
    assert "neither exponentials nor sigmoids" in record.skipped[0].reason
