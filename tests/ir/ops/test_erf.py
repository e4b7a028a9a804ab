"""The error function against the C library's."""

from __future__ import annotations

import math

import numpy as np

from regraft.ir.ops.erf import erf

POINTS = np.concatenate(
    [np.linspace(-7, 7, 20_001), np.logspace(-300, 1, 2_001), -np.logspace(-300, 1, 2_001)]
)


def test_erf_is_within_four_ulp_in_f64() -> None:
    exact = np.array([math.erf(x) for x in POINTS])
    assert np.all(np.abs(erf(POINTS) - exact) <= 4 * np.spacing(np.abs(exact)))


def test_erf_is_correctly_rounded_up_to_one_ulp_in_f32() -> None:
    x = POINTS.astype(np.float32)
    exact = np.array([math.erf(v) for v in x.astype(np.float64)])
    result = erf(x)
    assert result.dtype == np.float32
    assert np.all(np.abs(result - exact) <= np.spacing(np.abs(exact).astype(np.float32)))


def test_erf_of_special_values() -> None:
    result = erf(np.array([0.0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(result, [0.0, -0.0, 1.0, -1.0, np.nan])
    assert np.signbit(result).tolist()[:2] == [False, True]
