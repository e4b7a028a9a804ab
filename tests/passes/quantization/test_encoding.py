"""Codes of matrices: the grid, search of ranges, GPTQ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.errors import UsageError
from regraft.passes.calibration import statistics
from regraft.passes.calibration.curvature import curvature, inverse_factor
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.quantization.descent import descended
from regraft.passes.quantization.encoding import (
    Encoded,
    grid_of,
    round_to,
    rounded_rows,
    searched_grid,
)
from regraft.passes.quantization.formats import FORMATS, INT8, UINT4
from regraft.passes.quantization.gptq import gptq

INTEGERS = [fmt for fmt in FORMATS.values() if fmt.is_integer]


def heavy_tailed(size: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (size, width)).astype(np.float32)


def correlated_rows(size: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(400, size)) @ rng.normal(size=(size, size))).astype(np.float64)


@pytest.mark.parametrize("fmt", INTEGERS, ids=lambda fmt: fmt.name)
@given(
    k=st.integers(1, 40), n=st.integers(1, 5), group=st.sampled_from([1, 7, 16, 40]),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_a_value_in_range_moves_by_half_a_step_at_most(fmt, k, n, group, seed):
    matrix = heavy_tailed(k, n, seed)
    encoded = round_to(matrix, grid_of(matrix, fmt, group))
    step = np.repeat(encoded.grid.scale, group, 0)[:k]
    # asymmetric grids move by half a step more: 0 is a code, so that the ends are no grid points
    allowed = step * (0.5 if fmt.symmetric else 1.0) * (1 + 1e-4)
    assert (np.abs(encoded.decode() - matrix) <= allowed).all()
    assert encoded.codes.min() >= fmt.low
    assert encoded.codes.max() <= fmt.high


def test_zero_is_exact():
    matrix = heavy_tailed(32, 3)
    matrix[5] = 0
    for fmt in FORMATS.values():
        assert (round_to(matrix, grid_of(matrix, fmt, 16)).decode()[5] == 0).all()


def test_int8_leaves_out_the_code_without_a_negation():
    matrix = np.array([[-1.0], [0.5]], np.float32)
    assert round_to(matrix, grid_of(matrix, INT8, 2)).codes.tolist() == [[-127], [64]]


def test_codes_follow_the_formula():
    matrix = np.array([[-1.0], [0.0], [2.0]], np.float32)
    encoded = round_to(matrix, grid_of(matrix, UINT4, 3))
    assert encoded.grid.scale[0, 0] == np.float32(3 / 15)
    assert encoded.grid.zero_point is not None
    assert encoded.grid.zero_point[0, 0] == 5
    assert encoded.codes[:, 0].tolist() == [0, 5, 15]


def test_searched_ranges_have_less_error_on_what_counts():
    matrix = heavy_tailed(64, 8)
    importance = np.geomspace(1, 1e4, 64)

    def loss(encoded):
        return float((np.square(encoded.decode() - matrix) * importance[:, None]).sum())

    plain = loss(round_to(matrix, grid_of(matrix, UINT4, 32)))
    searched = loss(round_to(matrix, searched_grid(matrix, UINT4, 32, importance)))
    assert searched < 0.9 * plain


def test_gptq_keeps_products_closer_than_rounding():
    matrix, rows = heavy_tailed(96, 16), correlated_rows(96)
    grid = grid_of(matrix, UINT4, 32)

    def loss(encoded):
        return float(np.square(rows @ (encoded.decode() - matrix)).sum())

    assert loss(gptq(matrix, grid, curvature(rows.T @ rows))) < 0.6 * loss(round_to(matrix, grid))


def test_gptq_of_independent_inputs_is_rounding():
    matrix = heavy_tailed(40, 4)
    grid = grid_of(matrix, UINT4, 16)
    codes = gptq(matrix, grid, curvature(np.eye(40) * 7)).codes
    assert (codes == round_to(matrix, grid).codes).all()


def test_gptq_equals_the_update_by_a_fresh_inverse_at_every_step():
    """The Cholesky form against its definition: optimal brain surgery, one position at a time."""
    matrix, rows = heavy_tailed(12, 3).astype(np.float64), correlated_rows(12)
    moments = rows.T @ rows
    grid = grid_of(matrix.astype(np.float32), UINT4, 4)
    order = np.argsort(-np.diag(moments), kind="stable")
    hessian = moments + 0.01 * np.diag(moments).mean() * np.eye(12)
    rest, left, want = matrix.copy(), list(order), np.zeros((12, 3))
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        position = left[0]
        scale, zero = grid.row(position)
        code = np.clip(np.rint(rest[position] / scale) + zero, 0, 15)
        want[position] = code
        error = (rest[position] - (code - zero) * scale) / inverse[0, 0]
        rest[left] -= np.outer(inverse[:, 0], error)
        left = left[1:]
    assert (gptq(matrix.astype(np.float32), grid, curvature(moments)).codes == want).all()


def test_inputs_that_are_always_zero_are_rounded():
    matrix, rows = heavy_tailed(20, 3), correlated_rows(20)
    rows[:, 4] = 0
    grid = grid_of(matrix, UINT4, 20)
    codes = gptq(matrix, grid, curvature(rows.T @ rows)).codes
    assert (codes[4] == round_to(matrix, grid).codes[4]).all()


def test_moments_that_are_not_finite_are_an_error():
    with pytest.raises(UsageError, match="beyond f32"):
        inverse_factor(np.full((3, 3), np.nan))


def test_the_factor_is_that_of_the_damped_inverse_in_f64_and_f32():
    rows = correlated_rows(40)
    moments = rows.T @ rows
    upper, fraction = inverse_factor(moments)
    damped = moments + fraction * np.diag(moments).mean() * np.eye(40)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(40), atol=1e-9)
    assert (np.tril(upper, -1) == 0).all()
    narrow, _ = inverse_factor(moments.astype(np.float32))
    assert narrow.dtype == np.float32
    # the condition is below 100 K by the damping of 1 %, and each step loses eps of f32
    np.testing.assert_allclose(narrow, upper, atol=4000 * 6e-8 * np.abs(upper).max())


def test_curvature_may_lie_where_the_moments_were():
    rows = correlated_rows(24).astype(np.float32)
    moments = rows.T @ rows
    kept = curvature(moments)
    found = curvature(moments, overwrite=True)
    assert found.damped is moments
    assert kept.damped is not moments
    np.testing.assert_array_equal(found.damped, kept.damped)
    np.testing.assert_array_equal(found.factor, kept.factor)


def test_moments_are_the_same_in_pieces(monkeypatch):
    rows = correlated_rows(50).astype(np.float32)

    def seen():
        stats = Statistics.empty(50, with_moments=True)
        stats.update(rows)
        stats.flush()
        return stats

    whole = seen()
    monkeypatch.setattr(statistics, "_MOMENTS_AT_ONCE", 7)
    parts = seen()
    # products in f32 of 400 rows, added in another order
    atol = 400 * 6e-8 * np.abs(whole.moments).max()
    np.testing.assert_allclose(parts.moments, whole.moments, atol=atol)
    np.testing.assert_allclose(parts.moments, parts.moments.T, atol=atol)
    spread = parts.spread
    np.testing.assert_array_equal(parts.take_spread(), spread)
    assert parts.moments is None


def test_importance_is_what_an_error_costs_after_the_others_made_up_for_it():
    rows = correlated_rows(12)
    moments = rows.T @ rows
    found = curvature(moments).importance
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(12)
    for position in range(12):
        others = [idx for idx in range(12) if idx != position]
        # minimum over the others of eᵀ H e with e = 1 at the position: the Schur complement
        across = damped[position, others]
        inner = np.linalg.solve(damped[np.ix_(others, others)], across)
        np.testing.assert_allclose(found[position], damped[position, position] - across @ inner)


def test_tables_are_rounded_row_by_row():
    table = heavy_tailed(5000, 7)
    codes, scale = rounded_rows(table)
    assert codes.shape == table.shape
    step = scale[:, None]
    assert (np.abs(codes * step - table) <= step * 0.5 * (1 + 1e-5)).all()
    assert (np.abs(codes).max(1) == 127).all()


def test_descent_brings_products_closer_and_ends_where_no_single_code_helps():
    matrix, rows = heavy_tailed(70, 6), correlated_rows(70)
    found = curvature(rows.T @ rows)
    greedy = gptq(matrix, grid_of(matrix, UINT4, 16), found)
    best = descended(matrix, greedy, found.damped, 30)

    def loss(codes):
        off = Encoded(best.grid, codes).decode().astype(np.float64) - matrix
        return np.einsum("kn,kl,ln->n", off, found.damped.astype(np.float64), off)

    assert loss(best.codes).sum() < 0.97 * loss(greedy.codes).sum()
    for position in range(0, 70, 7):
        for step in (-1, 1):
            codes = best.codes.astype(np.int16)
            codes[position] = np.clip(codes[position] + step, 0, 15)
            assert (loss(codes) >= loss(best.codes) * (1 - 1e-4)).all()


def test_pairs_that_few_rows_show_by_chance_do_not_mislead_gptq():
    rng = np.random.default_rng(0)
    matrix, unseen = heavy_tailed(64, 40), rng.normal(size=(4000, 64))
    stats = Statistics.empty(64, with_moments=True)
    stats.update(rng.normal(size=(24, 64)).astype(np.float32))
    stats.flush()
    grid = searched_grid(matrix, UINT4, 32)
    lost = [
        float(np.square(unseen @ (encoded.decode() - matrix)).sum())
        for encoded in (gptq(matrix, grid, curvature(stats.spread)), round_to(matrix, grid))
    ]
    # independent channels: nothing can make up for anything, and GPTQ has to find that out
    assert lost[0] < 1.05 * lost[1]


def test_pairs_of_many_rows_stay_as_they_were_seen():
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(4000, 40)) @ rng.normal(size=(40, 40))).astype(np.float32)
    stats = Statistics.empty(40, with_moments=True)
    stats.update(rows)
    stats.flush()
    about = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    certain = len(rows) / (len(rows) + 40)  # of the mean, as `spread` says
    want = about.T @ about + (1 - certain) * len(rows) * np.outer(rows.mean(0), rows.mean(0))
    np.testing.assert_allclose(stats.spread, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
