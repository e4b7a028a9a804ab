"""Closed forms: least squares, the update of the Optimal Brain Surgeon, and their errors."""

from typing import Any

import numpy as np
import pytest

from regraft.passes.reconstruction.solving import (
    Change,
    Sums,
    best_change,
    obs_error,
    obs_update,
)

Array = np.ndarray[Any, Any]

ROWS, INPUTS, OUTPUTS = 200, 12, 5


def _problem(seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((ROWS, INPUTS)) @ rng.standard_normal((INPUTS, INPUTS))
    return mixed, rng.standard_normal((INPUTS, OUTPUTS))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_removed", [1, 4, 9])
def test_obs_equals_least_squares(seed: int, num_removed: int) -> None:
    x, weight = _problem(seed)
    removed = np.sort(np.random.default_rng(seed).permutation(INPUTS)[:num_removed])
    kept = np.setdiff1d(np.arange(INPUTS), removed)
    updated = obs_update(weight, x.T @ x, removed)
    expected = np.linalg.lstsq(x[:, kept], x @ weight, rcond=None)[0]
    assert (updated[removed] == 0).all()
    # f64 and a condition of a few thousand: eleven digits, squared by the normal equations
    np.testing.assert_allclose(updated[kept], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("with_bias", [False, True])
def test_solve_equals_least_squares_on_what_is_left(with_bias: bool) -> None:
    x, weight = _problem(7)
    x = x + 3.0  # a mean, which a bias takes up
    kept = np.arange(0, INPUTS, 2)
    left = x[:, kept]
    sums = Sums.of(left[None], (x @ weight - left @ weight[kept])[None])
    change = sums.solve(0.0, with_bias=with_bias)
    columns = np.column_stack([left, np.ones(ROWS)]) if with_bias else left
    expected = np.linalg.lstsq(columns, x @ weight, rcond=None)[0]
    np.testing.assert_allclose(
        weight[kept] + change.weight[0], expected[: len(kept)], rtol=1e-5, atol=1e-8
    )
    if with_bias:
        assert change.bias is not None
        np.testing.assert_allclose(change.bias[0], expected[-1], rtol=1e-5, atol=1e-8)
    residual = columns @ expected - x @ weight
    assert sums.error(change) == pytest.approx(np.square(residual).sum(), rel=1e-6)


def test_a_ridge_is_damping_of_the_moments() -> None:
    x, weight = _problem(3)
    removed, kept = np.array([2, 5]), np.setdiff1d(np.arange(INPUTS), [2, 5])
    left = x[:, kept]
    sums = Sums.of(left[None], (x[:, removed] @ weight[removed])[None])
    ridge = 0.1
    damping = ridge * np.square(left).sum(0).mean()
    updated = obs_update(weight, x.T @ x + damping * np.eye(INPUTS), removed)
    found = weight[kept] + sums.solve(ridge, with_bias=False).weight[0]
    np.testing.assert_allclose(found, updated[kept], rtol=1e-9, atol=1e-9)


def test_obs_error_is_what_least_squares_leaves() -> None:
    x, weight = _problem(4)
    blocks = np.arange(INPUTS).reshape(-1, 3)
    errors = obs_error(weight, x.T @ x, blocks)
    for block, error in zip(blocks, errors, strict=True):
        lost = x @ (obs_update(weight, x.T @ x, block) - weight)
        assert error == pytest.approx(np.square(lost).sum(), rel=1e-8)


def test_held_out_rows_choose_the_ridge() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((1, 14, INPUTS))  # hardly more rows than inputs: fits noise
    noise = rng.standard_normal((1, 14, OUTPUTS))
    other = Sums.of(rng.standard_normal((1, 400, INPUTS)), rng.standard_normal((1, 400, OUTPUTS)))
    fit = Sums.of(wide, noise)
    change = best_change(fit, other, with_bias=False, only_bias=False)
    free = (fit + other).solve(0.0, with_bias=False)
    assert np.square(change.weight).sum() < np.square(free.weight).sum()


def test_only_the_bias_moves_when_asked() -> None:
    x, _ = _problem(5)
    lacking = np.full((1, ROWS, OUTPUTS), 2.5)
    change = best_change(Sums.of(x[None], lacking), None, with_bias=True, only_bias=True)
    assert not change.weight.any()
    assert change.bias is not None
    np.testing.assert_allclose(change.bias, 2.5, rtol=1e-12)
    assert Sums.of(x[None], lacking).error(Change(change.weight, change.bias)) < 1e-18 * ROWS
