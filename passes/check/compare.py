"""Comparing outputs: errors per output, the tolerance of an exact result, and the verdict.

The tolerance of an exact float result is max|a - b| <= max(1e-5 * max|a|, 4 x floor), where the
floor is how far the source itself moves when its runtime's optimizations are switched off, or from
its element type to f64 (see `regraft.passes.check.second_look`). For half-precision outputs 1e-5 is
replaced by the rounding step of the element type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.types import DType, dtype_of

Array = np.ndarray[Any, Any]

EXACT_RTOL = 1e-5
"""Relative tolerance of an exact float32 result, of the largest output element."""

_EPS: dict[DType, float] = {
    DType.F16: 2.0**-10,
    DType.BF16: 2.0**-7,
    DType.F8E4M3FN: 2.0**-3,
    DType.F8E4M3FNUZ: 2.0**-3,
    DType.F8E5M2: 2.0**-2,
    DType.F8E5M2FNUZ: 2.0**-2,
}

_PROVES_NOTHING = "the reference is empty, NaN or all zero: proves nothing"


def step_of(dtype: DType | None) -> float:
    """Returns the relative step of a half-precision or smaller float type, 0 for wider ones."""
    return 0.0 if dtype is None else _EPS.get(dtype, 0.0)


@dataclass(frozen=True, slots=True)
class OutputDiff:
    """How one output differs between a reference and a candidate.

    Args:
        name: Output name.
        ok: Whether the difference is allowed.
        max_abs: Largest absolute difference (number of differing elements for non-floats).
        max_rel: `max_abs` over the largest reference element.
        cosine: Cosine similarity of the flattened outputs, 1.0 for two zero outputs.
        allowed: The largest `max_abs` that passes.
        reason: Why it fails, or why it does not count; "" otherwise.
        counts: False when the reference is NaN or all zero and proves nothing.
    """

    name: str
    ok: bool
    max_abs: float
    max_rel: float
    cosine: float
    allowed: float
    reason: str = ""
    counts: bool = True


def compare_outputs(
    reference: Mapping[str, Any],
    candidate: Mapping[str, Any],
    *,
    plain: Mapping[str, Any] | None = None,
    noise: Mapping[str, float] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> list[OutputDiff]:
    """Compares outputs by name.

    Args:
        reference: What the source computes.
        candidate: What the result computes.
        plain: What the source computes with runtime optimizations off; gives the noise floor.
        noise: A noise floor by output, known from elsewhere; the larger one counts.
        rtol: Overrides `EXACT_RTOL` and the element type's step.
        atol: Adds an absolute allowance.
    """
    diffs = []
    for name, expected in reference.items():
        if name not in candidate:
            diffs.append(OutputDiff(name, False, np.inf, np.inf, 0.0, 0.0, "output is missing"))
            continue
        other = None if plain is None else plain.get(name)
        floor = 0.0 if noise is None else noise.get(name, 0.0)
        tolerance = _Tolerance(floor, rtol, atol or 0.0)
        diffs.append(_compare(name, expected, candidate[name], other, tolerance))
    return diffs


def distance(expected: Any, actual: Any) -> float:
    """Returns how far two values of an output are apart: the unit of noise floors.

    The largest difference of floats where both are finite, the number of differing elements
    otherwise, the worst of a sequence; 0 where they cannot be compared.
    """
    if isinstance(expected, list | tuple):
        pairs = zip(expected, actual, strict=False) if isinstance(actual, list | tuple) else ()
        return max((distance(a, b) for a, b in pairs), default=0.0)
    if expected is None or actual is None or np.shape(expected) != np.shape(actual):
        return 0.0
    expected, actual = np.asarray(expected), np.asarray(actual)
    if not _is_float(expected):
        return float(np.count_nonzero(expected != actual))
    wide = _wide(expected)
    a, b = expected.astype(wide, copy=False), actual.astype(wide, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf
        apart = np.abs(a - b)
    worst = float(apart.max()) if apart.size else 0.0
    if np.isfinite(worst):
        return worst  # nearly always: what is not finite has to be left out otherwise
    usable = np.isfinite(a) & np.isfinite(b)
    return float(apart[usable].max()) if usable.any() else 0.0


@dataclass(frozen=True, slots=True)
class _Tolerance:
    """What an output may differ by: the noise floor known from elsewhere, and the overrides."""

    floor: float
    rtol: float | None
    atol: float


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fc" or (array.dtype.kind == "V" and dtype_of(array).is_float)


def _wide(array: Array) -> Any:
    return np.complex128 if array.dtype.kind == "c" else np.float64


def _compare(name: str, expected: Any, actual: Any, plain: Any, by: _Tolerance) -> OutputDiff:
    if isinstance(expected, list | tuple):
        return _compare_sequence(name, expected, actual, plain, by)
    if expected is None or actual is None:
        same = expected is None and actual is None
        return OutputDiff(name, same, 0.0, 0.0, 1.0, 0.0, "" if same else "one is absent")
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        reason = f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        return OutputDiff(name, False, np.inf, np.inf, 0.0, 0.0, reason)
    if expected.dtype != actual.dtype and expected.dtype.kind not in "OUS":
        reason = f"element type {dtype_of(actual)}, expected {dtype_of(expected)}"
        return OutputDiff(name, False, np.inf, np.inf, 0.0, 0.0, reason)
    if not _is_float(expected):
        wrong = float(np.count_nonzero(expected != actual))
        floor = 4.0 * max(by.floor, distance(expected, plain))
        reason = "" if wrong <= floor else f"{wrong:.0f} of {expected.size} elements differ"
        share = wrong / max(expected.size, 1)
        counts = bool(np.any(expected != 0)) if expected.dtype.kind in "iub" else expected.size > 0
        return OutputDiff(
            name, wrong <= floor, wrong, share, 1.0 - share, floor,
            reason or ("" if counts else _PROVES_NOTHING), counts,
        )  # fmt: skip
    return _compare_floats(name, expected, actual, plain, by)


def _compare_floats(
    name: str, expected: Array, actual: Array, plain: Any, by: _Tolerance
) -> OutputDiff:
    step = _EPS.get(dtype_of(expected), 0.0) if expected.dtype.kind != "c" else 0.0
    wide = _wide(expected)
    a, b = expected.astype(wide, copy=False), actual.astype(wide, copy=False)
    has_nan, same_special = bool(np.isnan(a).any()), True
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        finite = np.isfinite(a)
        same_special = np.array_equal(finite, np.isfinite(b)) and np.array_equal(
            a[~finite], b[~finite], equal_nan=True
        )
        a, b = a[finite], b[finite] if same_special else np.zeros_like(a[finite])
    scale = float(np.abs(a).max()) if a.size else 0.0
    max_abs = float(np.abs(a - b).max()) if a.size and same_special else 0.0
    # the plain run may differ in where it is finite; such elements say nothing of the floor
    floor = max(by.floor, distance(expected, plain))
    relative = max(EXACT_RTOL, 2 * step) if by.rtol is None else by.rtol
    allowed = max(relative * scale, 4.0 * floor) + by.atol
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.real(np.vdot(a, b))) / norm if norm else float(max_abs == 0.0)
    ok = same_special and max_abs <= allowed
    counts = bool(a.size) and scale > 0.0 and not has_nan
    reason = ""
    if not same_special:
        reason = "NaN or Inf at other places"
    elif not ok:
        reason = f"differs by {max_abs:.3g}, allowed {allowed:.3g}"
    elif not counts:
        reason = _PROVES_NOTHING
    return OutputDiff(
        name, ok, max_abs, max_abs / scale if scale else 0.0, cosine, allowed, reason, counts
    )


def _compare_sequence(
    name: str, expected: Any, actual: Any, plain: Any, by: _Tolerance
) -> OutputDiff:
    if not isinstance(actual, list | tuple) or len(actual) != len(expected):
        return OutputDiff(name, False, np.inf, np.inf, 0.0, 0.0, "sequence lengths differ")
    others = plain if isinstance(plain, list | tuple) else [None] * len(expected)
    diffs = [
        _compare(f"{name}[{i}]", e, a, p, by)
        for i, (e, a, p) in enumerate(zip(expected, actual, others, strict=True))
    ]
    if not diffs:
        return OutputDiff(name, True, 0.0, 0.0, 1.0, 0.0, "empty sequence", counts=False)
    worst = max(diffs, key=lambda diff: (not diff.ok, diff.max_rel))
    return OutputDiff(
        name, worst.ok, worst.max_abs, worst.max_rel, worst.cosine, worst.allowed, worst.reason,
        any(diff.counts for diff in diffs),
    )  # fmt: skip
