"""Fitted scales of groups leave no more error than ranges that are searched one by one."""

import numpy as np
import pytest

from regraft.passes.quantization.encoding import grid_of, round_to, searched_grid
from regraft.passes.quantization.fitted_grids import can_fit, fitted_grid
from regraft.passes.quantization.formats import INT2, INT3, INT4, INT8, NF4, UINT2, UINT4, UINT8


def lost(matrix, grid):
    return float(np.square(round_to(matrix, grid).decode().astype(np.float64) - matrix).sum())


@pytest.mark.parametrize("fmt", [UINT4, INT4, UINT2, INT3, UINT8, INT8], ids=lambda f: f.name)
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("tails", [4, 1000])
def test_fitted_scales_lose_less_than_searched_ranges(fmt, group, tails):
    matrix = np.random.default_rng(0).standard_t(tails, (512, 128)).astype(np.float32)
    assert can_fit(fmt, group)
    found = lost(matrix, fitted_grid(matrix, fmt, group))
    # of 4,096 groups some few are left with a range that the finer search would have found
    assert found < 1.002 * lost(matrix, searched_grid(matrix, fmt, group))
    assert found < lost(matrix, grid_of(matrix, fmt, group))


def test_groups_of_equal_numbers_and_of_zeros_are_exact():
    matrix = np.zeros((64, 3), np.float32)
    matrix[:32, 1], matrix[32:, 2] = 3.0, -2.0
    for fmt in (UINT4, INT4):
        assert lost(matrix, fitted_grid(matrix, fmt, 32)) == pytest.approx(0, abs=1e-10)


def test_a_last_group_that_is_shorter_is_fitted_by_what_it_has():
    matrix = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    whole, last = fitted_grid(matrix, UINT4, 32), fitted_grid(matrix[32:], UINT4, 32)
    assert (whole.scale[1] == last.scale[0]).all()


def test_wide_groups_and_tables_are_searched():
    assert not can_fit(UINT4, 128)
    assert can_fit(UINT8, 128)
    assert not can_fit(UINT8, 512)
    assert not can_fit(NF4, 32)
    assert not can_fit(INT2, 32)
