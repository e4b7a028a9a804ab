"""Inputs in 8 bits make up for the others; fitted scales and moments about the mean lose less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.passes.calibration.curvature import curvature
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.quantization.descent import descended
from regraft.passes.quantization.encoding import Encoded, round_to, searched_grid
from regraft.passes.quantization.fitted_scales import fitted_scales
from regraft.passes.quantization.formats import FORMATS, INT4, UINT4, UINT8
from regraft.passes.quantization.gptq import gptq
from regraft.passes.quantization.split_inputs import input_order, split_inputs

Array = np.ndarray[Any, Any]
SIZE, WIDTH, GROUP = 128, 40, 32


def rows_of(mean: float = 0.0, count: int = 1500) -> Array:
    """Rows whose channels hang together and are of very different sizes."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(count, SIZE)) @ rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    scale = np.exp(rng.normal(size=SIZE))
    return np.asarray(mixed * scale + mean * rng.normal(size=SIZE), np.float32)


def matrix_of() -> Array:
    return np.random.default_rng(1).normal(size=(SIZE, WIDTH)).astype(np.float32)


def statistics(rows: Array) -> Statistics:
    found = Statistics.empty(SIZE, with_moments=True)
    found.update(rows)
    found.flush()
    return found


def lost(difference: Array, moments: Array) -> float:
    return float(np.einsum("kn,kn->", difference, moments @ difference, dtype=np.float64))


def test_inputs_in_8_bits_make_up_for_the_others() -> None:
    rows, matrix = rows_of(), matrix_of()
    found = curvature(statistics(rows).spread)
    order = input_order(found, SIZE // 4)
    assert len(set(order.tolist())) == SIZE // 4
    chosen = np.zeros(SIZE, bool)
    chosen[order] = True
    split = split_inputs(matrix, chosen, (UINT4, UINT8), GROUP, found)
    few = gptq(matrix, searched_grid(matrix, UINT4, GROUP, found.importance), found).decode()
    mixed = few.copy()
    mixed[chosen] = matrix[chosen]  # in float, and making up for nothing
    error = lost(split.decode() - matrix, found.damped)
    assert error < 0.6 * lost(few - matrix, found.damped)
    assert error < 0.8 * lost(mixed - matrix, found.damped)


def test_an_order_of_inputs_leaves_out_what_others_say() -> None:
    rows = rows_of()
    largest = int(np.argmax(rows.var(0)))
    twin = (largest + 1) % SIZE
    rows[:, twin] = rows[:, largest]
    order = input_order(curvature(statistics(rows).spread), 8)
    assert order[0] in (largest, twin)
    assert not {largest, twin} <= set(order.tolist())


@pytest.mark.parametrize("fmt", [UINT4, INT4, FORMATS["nf4"]], ids=lambda fmt: fmt.name)
def test_fitted_scales_lose_less_with_the_same_codes(fmt: Any) -> None:
    matrix, moments = matrix_of(), curvature(statistics(rows_of()).spread).damped
    start = round_to(matrix, searched_grid(matrix, fmt, GROUP))
    found = fitted_scales(matrix, start, moments)
    np.testing.assert_array_equal(found.codes, start.codes)
    before, after = (lost(each.decode() - matrix, moments) for each in (start, found))
    assert after < 0.99 * before
    for share in (0.999, 1.001):  # a minimum: the error grows to either side of it
        grid = type(found.grid)(fmt, found.grid.scale * np.float32(share), found.grid.zero_point,
                                GROUP)  # fmt: skip
        assert lost(Encoded(grid, found.codes).decode() - matrix, moments) > after
    swept = descended(matrix, found, moments, 1)
    assert lost(swept.decode() - matrix, moments) <= after * (1 + 1e-5)


def test_codes_found_about_the_mean_lose_less_once_a_bias_takes_the_mean() -> None:
    every = rows_of(5.0, 3000)
    matrix, stats, new = matrix_of(), statistics(every[:1500]), every[1500:]
    left: dict[str, float] = {}
    assert stats.moments is not None
    for name, moments in (("moments", stats.moments), ("spread", stats.spread)):
        found = curvature(moments)
        code = gptq(matrix, searched_grid(matrix, UINT4, GROUP, found.importance), found)
        difference = code.decode() - matrix
        left[name] = float(np.square((new - stats.mean) @ difference).mean())
    assert left["spread"] < 0.9 * left["moments"]


def test_of_few_rows_most_of_the_mean_stays_in() -> None:
    few = statistics(rows_of(5.0, 4))
    share = 1 - 4 / (4 + SIZE)
    # of pairs, moments are made smaller besides: see `test_encoding`
    kept = np.diag(few.moments) - np.diag(few.spread)
    np.testing.assert_allclose(kept, (1 - share) * 4 * np.square(few.mean), rtol=1e-6)
