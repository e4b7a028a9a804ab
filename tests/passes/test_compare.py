"""Comparing outputs: what passes, what fails, what proves nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from regraft.passes.check.compare import EXACT_RTOL, compare_outputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 5)).astype(np.float32)


def one(expected: object, actual: object, **kwargs: object):  # type: ignore[no-untyped-def]
    (diff,) = compare_outputs({"y": expected}, {"y": actual}, **kwargs)
    return diff


def test_equal_outputs_agree() -> None:
    diff = one(X, X.copy())
    assert diff.ok
    assert diff.counts
    assert diff.max_abs == 0.0
    assert diff.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(("factor", "ok"), [(0.9, True), (1.1, False)])
def test_float_tolerance_is_relative_to_the_largest_element(factor: float, ok: bool) -> None:
    other = X.copy()
    other[0, 0] += np.float32(factor * EXACT_RTOL * np.abs(X).max())
    assert one(X, other).ok is ok


def test_noise_floor_of_the_source_widens_the_tolerance() -> None:
    plain, other = X.copy(), X.copy()
    plain[1, 1] += 1e-3
    other[0, 0] += 3e-3
    assert not one(X, other).ok
    assert one(X, other, plain={"y": plain}).ok


def test_half_precision_is_judged_by_its_rounding_step() -> None:
    half = X.astype(np.float16)
    near = np.nextafter(half, np.float16(np.inf))
    assert one(half, near).ok
    bf16 = X.astype(ml_dtypes.bfloat16)
    assert one(bf16, bf16).ok
    assert not one(bf16, (X * 1.2).astype(ml_dtypes.bfloat16)).ok


def test_integers_must_be_equal() -> None:
    a = np.arange(6)
    b = a.copy()
    b[3] = 0
    diff = one(a, b)
    assert not diff.ok
    assert diff.reason == "1 of 6 elements differ"


def test_integers_may_differ_where_the_source_itself_does() -> None:
    a, b = np.arange(6), np.arange(6)
    b[3] = 0
    assert one(a, b, plain={"y": b}).ok


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (X[:3], "shape [3, 5], expected [4, 5]"),
        (X.astype(np.float64), "element type f64, expected f32"),
        (np.full_like(X, np.nan), "NaN or Inf at other places"),
        ([X], "shape"),
        (None, "one is absent"),
    ],
)
def test_reason_says_what_differs(other: object, reason: str) -> None:
    diff = one(X, other)
    assert not diff.ok
    assert reason in diff.reason


def test_missing_output_fails() -> None:
    (diff,) = compare_outputs({"y": X}, {})
    assert not diff.ok
    assert diff.reason == "output is missing"


@pytest.mark.parametrize(
    "reference",
    [
        np.zeros_like(X),
        np.full_like(X, np.nan),
        X[:0],
        np.zeros(3, np.int64),
        np.zeros(3, np.bool_),
        np.zeros(0, np.int64),
        np.zeros(0, object),
    ],
)
def test_empty_zero_or_nan_reference_proves_nothing(reference: np.ndarray) -> None:
    diff = one(reference, reference.copy())
    assert diff.ok
    assert not diff.counts


def test_infinities_must_stand_at_the_same_places() -> None:
    a, b = X.copy(), X.copy()
    a[0, 0] = b[0, 0] = np.inf
    assert one(a, b).ok
    b[0, 0] = -np.inf
    assert not one(a, b).ok


def test_sequences_compare_element_by_element() -> None:
    assert one([X, X], [X, X]).ok
    assert not one([X, X], [X, X + 1]).ok
    assert one([X], [X, X]).reason == "sequence lengths differ"
