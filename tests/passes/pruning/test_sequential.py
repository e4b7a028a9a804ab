"""Sequential attention against Orthogonal Matching Pursuit."""

from typing import Any

import numpy as np
import pytest

from regraft.passes.pruning.sequential import selection_order

Array = np.ndarray[Any, Any]

ROWS, INPUTS = 120, 20


def _pursuit(x: Array, y: Array, count: int) -> list[int]:
    """Orthogonal Matching Pursuit on columns of length one, by least squares each time."""
    x = x / np.linalg.norm(x, axis=0)
    chosen: list[int] = []
    for _ in range(count):
        residual = y
        if chosen:
            residual = y - x[:, chosen] @ np.linalg.lstsq(x[:, chosen], y, rcond=None)[0]
        gains = np.square(x.T @ residual).sum(1)
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_on_linear_regression_it_chooses_what_pursuit_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, INPUTS)) @ (
        np.eye(INPUTS) + 0.3 * rng.standard_normal((INPUTS, INPUTS))
    )
    y = x @ (rng.standard_normal((INPUTS, 1 + seed % 3)) * (rng.random((INPUTS, 1)) < 0.4))
    y = y + 0.1 * rng.standard_normal(y.shape)
    blocks = np.arange(INPUTS)[:, None]
    found = selection_order(x.T @ x, x.T @ y, blocks, 8)
    assert found == _pursuit(x, y, 8)


def test_what_others_carry_already_is_not_chosen() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 4))
    x[:, 1] = x[:, 0]
    y = x[:, [0]] * 3 + x[:, [2]]
    assert selection_order(x.T @ x, x.T @ y, np.arange(4)[:, None], 2) == [0, 2]


def test_units_of_several_inputs_are_chosen_whole() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((ROWS, 6))
    y = x[:, [4]] + x[:, [5]]
    assert selection_order(x.T @ x, x.T @ y, np.arange(6).reshape(3, 2), 1) == [2]
