"""Bounds of values hold on whatever is run, and say something where they can."""

from typing import Any

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops.attention_weights import NORMALIZERS
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.bounds import Bounds
from regraft.passes.analysis.intervals import Intervals
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.random_modules import inputs_of, random_module


def _check(module: Module, inputs: dict[str, Any], ranges: dict[str, Any]) -> tuple[int, int]:
    """Returns how many values were compared, and of how many something was known."""
    bounds = Intervals(module.graph, ranges)
    seen = known = 0

    def observe(value: Value, array: Any) -> None:
        nonlocal seen, known
        if value.owner is not module.graph or not isinstance(array, np.ndarray):
            return
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            return
        found = bounds.of(value)
        seen += 1
        known += bool(np.isfinite(found.magnitude).any())
        np.broadcast_to(found.low, array.shape)
        node = value.producer
        assert (array >= found.low).all(), node
        assert (array <= found.high).all(), node

    evaluate(module, inputs, observe=observe)
    return seen, known


def test_bounds_hold_on_random_modules() -> None:
    seen = known = 0
    for seed in range(300):
        inputs = inputs_of(seed)
        ranges = {name: (float(array.min()), float(array.max())) for name, array in inputs.items()}
        for given in ({}, ranges):
            a, b = _check(random_module(seed), inputs, given)
            seen, known = seen + a, known + b
    assert seen > 5000
    assert known > seen / 3


def test_a_rule_that_forgets_negative_weights_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.passes.analysis import interval_sums

    def wrong(x: Bounds, weights: Any) -> Bounds:
        wide = np.broadcast_to(x.high, (*x.high.shape[:-1], weights.shape[0]))
        return Bounds(-np.abs(wide) @ np.maximum(weights, 0), wide @ np.maximum(weights, 0))

    monkeypatch.setattr(interval_sums, "_weighted", wrong)
    with pytest.raises(AssertionError):
        test_bounds_hold_on_random_modules()


def _of(module: Module, **ranges: tuple[float, float]) -> Bounds:
    return Intervals(module.graph, ranges).of(module.graph.outputs[0])


def test_a_norm_bounds_what_a_product_makes_of_it() -> None:
    module = spelled(
        "%n = layer_norm(%x, %gain, %shift)\n%y = matmul(%n, %w)",
        weights={"gain": "f32[16]", "shift": "f32[16]", "w": "f32[16, 3]"},
    )
    found = _of(module)
    gain, shift, w = (module.weights[n].numpy().astype(float) for n in ("gain", "shift", "w"))
    reach = 4 * np.linalg.norm(gain[:, None] * w, axis=0)
    centre = shift @ w
    assert np.allclose(found.high[0, 0], centre + reach, rtol=1e-4)
    assert np.allclose(found.low[0, 0], centre - reach, rtol=1e-4)
    # rows along the columns come near: the bound is not far from what can happen
    column = gain * w[:, 0]
    x = {"x": (column - column.mean())[None, None].astype(np.float32)}
    assert evaluate(module, x)["y"][0, 0, 0] > found.high[0, 0, 0] - 0.2 * reach[0]


def test_images_in_a_range_bound_convolutions() -> None:
    module = spelled(
        "%h = conv(%x, %w) {strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]}\n"
        "%y = relu(%h)",
        shape="B, 3, 8, 8",
        weights={"w": "f32[4, 3, 3, 3]"},
    )
    w = np.abs(module.weights["w"].numpy())
    w[0] *= -1
    module.weights.set("w", ArrayWeight(w))
    found = _of(module, x=(0.0, 1.0))
    assert found.high[0, 0] == pytest.approx(0, abs=1e-4)
    assert found.high[0, 1] == pytest.approx(w[1].sum(), rel=1e-4)
    assert np.isinf(_of(module).high).all()


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        ("%y = sigmoid(%x)", 0, 1), ("%y = tanh(%x)", -1, 1), ("%y = relu(%x)", 0, np.inf),
        ("%y = clip(%x) {min = 0.0, max = 6.0}", 0, 6), ("%y = mul(%x, %x)", 0, np.inf),
        ("%y = softmax(%x) {axis = -1}", 0, 1), ("%y = gelu(%x)", -0.1701, np.inf),
        ("%y = hard_swish(%x)", -0.375, np.inf), ("%y = exp(%x)", 0, np.inf),
        ("%y = swish(%x)", -0.2785, np.inf),
    ],
)  # fmt: skip
def test_functions_bound_what_is_unbounded(line: str, low: float, high: float) -> None:
    found = _of(spelled(line))
    assert found.low.min() == pytest.approx(low, abs=1e-4)
    assert found.high.max() == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_weights_that_do_not_sum_to_one_leave_the_range_of_values(name: str) -> None:
    given = "normalizer_parameters = [0.0, 4.0, 0.0]" if name == "clipped" else ""
    module = spelled(
        "%v = tanh(%x)\n%y = attention(%x, %x, %v) "
        f'{{scale = 0.5, normalizer = "{name}"{", " * bool(given)}{given}}}',
        shape="B, 2, 4, 8",
    )
    found = _of(module)
    x = np.full((1, 2, 4, 8), 3, np.float32)  # equal values and weights: what sums reach
    result = evaluate(module, {"x": x})["y"]
    assert (result <= found.high).all()
    assert np.isinf(found.high).all() == (not NORMALIZERS[name].sums_to_one)


def test_a_long_chain_needs_no_deep_stack() -> None:
    lines = ["%a0 = sigmoid(%x)"] + [f"%a{i} = relu(%a{i - 1})" for i in range(1, 3000)]
    module = spelled("\n".join([*lines, "%y = neg(%a2999)"]))
    assert _of(module).low.min() == pytest.approx(-1, rel=1e-5)
