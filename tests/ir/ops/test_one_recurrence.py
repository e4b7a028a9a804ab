"""Linear attention, selective state spaces and gated RNNs are one operator.

h_t = L_t h_(t-1) + B_t u_t, y_t = C_t h_t + D u_t, each held against its own definition, step by
step. Source: Sieber et al., Understanding the differences in Foundation Models, 2024; Ali et al.,
The Hidden Attention of Mamba Models, 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import TensorType, dtype_of

Array = np.ndarray[Any, Any]

BATCH, T, CHANNELS, STATE = 2, 9, 5, 4
RNG = np.random.default_rng(5)


def _run(*operands: Array | None, **attrs: Any) -> Array:
    module = Module(Graph())
    values, feeds = [], {}
    for i, array in enumerate(operands):
        if array is None:
            values.append(None)
            continue
        array = array.astype(np.float32)
        values.append(module.graph.add_input(f"x{i}", TensorType(dtype_of(array), array.shape)))
        feeds[f"x{i}"] = array
    made = module.graph.create(linear_attention, values, {"scale": 1.0, **attrs})
    module.graph.add_output("y", made.outputs[0])
    return evaluate(module, feeds, oracle=True)["y"]


def _selective() -> tuple[Array, Array, Array, Array, Array]:
    """Returns u and delta [B, T, C], A [C, N], B and C [B, T, N] of S6."""
    u = RNG.standard_normal((BATCH, T, CHANNELS))
    delta = np.log1p(np.exp(RNG.standard_normal((BATCH, T, CHANNELS))))
    A = -np.exp(RNG.standard_normal((CHANNELS, STATE)))
    b, c = RNG.standard_normal((2, BATCH, T, STATE))
    return tuple(x.astype(np.float32) for x in (u, delta, A, b, c))  # type: ignore[return-value]


def _s6(u: Array, delta: Array, A: Array, b: Array, c: Array) -> Array:
    h = np.zeros((BATCH, CHANNELS, STATE))
    rows = []
    for t in range(T):
        h = np.exp(delta[:, t, :, None] * A) * h
        h = h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        rows.append((h * c[:, t, None]).sum(-1))
    return np.stack(rows, 1)


def _as_heads(u: Array, delta: Array, A: Array, b: Array, c: Array) -> tuple[Array, ...]:
    """Returns q, k, v and decay: every channel is a head, its state the size of the keys."""
    wide = (BATCH, CHANNELS, T, STATE)
    steps = delta.swapaxes(1, 2)[..., None]
    q, k = (np.broadcast_to(x[:, None], wide) for x in (c, b))
    return q, k * steps, u.swapaxes(1, 2)[..., None], steps * A[:, None]


@pytest.mark.parametrize("chunk_size", [1, 4, T])
def test_a_selective_state_space_is_the_operator(chunk_size: int) -> None:
    given = _selective()
    q, k, v, decay = _as_heads(*given)
    found = _run(q, k, v, None, decay, rule="gated", chunk_size=chunk_size)
    expected = _s6(*given)
    bound = 1e-6 * np.abs(expected).max()  # operands are f32, their products f64
    np.testing.assert_allclose(found[..., 0].swapaxes(1, 2), expected, rtol=0, atol=bound)


def test_a_selective_state_space_is_attention_that_its_data_controls() -> None:
    given = u, delta, A, b, c = _selective()
    sums = np.cumsum(delta.swapaxes(1, 2)[..., None] * A[:, None], axis=2, dtype=np.float64)
    apart = np.exp(np.minimum(sums[:, :, :, None] - sums[:, :, None], 0))  # [B, C, i, j, N]
    weights = np.einsum("bin,bcijn,bjn,bjc->bcij", c, apart, b, delta) * np.tri(T)
    found = np.einsum("bcij,bjc->bic", weights, u)
    np.testing.assert_allclose(found, _s6(*given), rtol=0, atol=1e-6)


def test_a_gated_rnn_is_the_operator() -> None:
    """h_t = f_t h_(t-1) + (1 - f_t) x_t: states of one number, forgotten by data."""
    x = RNG.standard_normal((BATCH, CHANNELS, T, 1)).astype(np.float32)
    forget = (1 / (1 + np.exp(-RNG.standard_normal(x.shape)))).astype(np.float32)
    h, rows = np.zeros((BATCH, CHANNELS, 1)), []
    for t in range(T):
        h = forget[:, :, t] * h + (1 - forget[:, :, t]) * x[:, :, t]
        rows.append(h)
    ones = np.ones_like(x)
    found = _run(ones, ones, (1 - forget) * x, None, np.log(forget), rule="gated")
    np.testing.assert_allclose(found, np.stack(rows, 2), rtol=0, atol=1e-6)


def test_normalized_linear_attention_is_two_states_of_the_operator() -> None:
    q, k = np.abs(RNG.standard_normal((2, BATCH, 2, T, STATE)))
    v = RNG.standard_normal((BATCH, 2, T, CHANNELS))
    weights = np.tri(T) * (q @ k.swapaxes(-1, -2))
    expected = weights @ v / weights.sum(-1, keepdims=True)
    above = _run(q, k, v, rule="linear")
    below = _run(q, k, np.ones_like(v[..., :1]), rule="linear")
    np.testing.assert_allclose(above / below, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        _run(q, k, v, rule="linear", normalizer="sum"), expected, rtol=0, atol=1e-5
    )
