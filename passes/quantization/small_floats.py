"""Floats of few bits with a real exponent bias: their values, and the best of them for a layer.

The values of ExMy are `(1 + f / 2^M) 2^(p - b)` for p = 1 .. 2^E - 1 and `f / 2^M 2^(1 - b)` below,
with both signs; a bias b that is no whole number makes the grid end where it should: at
`(2 - 2^-M) 2^(2^E - 1 - b)`. That is a table and a scale of `2^-b`. Liu et al., LLM-FP4, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.types import DType
from regraft.passes.quantization.formats import Format, nearest, values_of

Array = np.ndarray[Any, Any]

_STEPS = np.linspace(0.01, 1.2, 100)
"""Fractions of the largest number that the end of the grid is tried at."""

_ROUNDS = 3


def small_float(exponent: int, mantissa: int) -> Format:
    """Returns the format of ExMy without infinities; its code is sign, exponent, mantissa.

    Raises:
        UsageError: For more than 8 bits, or less than 2.
    """
    bits = 1 + exponent + mantissa
    if exponent < 1 or mantissa < 0 or bits > 8:
        raise UsageError(f"E{exponent}M{mantissa}: 2 to 8 bits with an exponent are needed")
    steps = 2**mantissa
    table = [
        (field / steps if power == 0 else 1 + field / steps) * 2.0 ** max(power, 1)
        for power in range(2**exponent)
        for field in range(steps)
    ]
    dtype = DType.U4 if bits <= 4 else DType.U8
    return Format(
        f"e{exponent}m{mantissa}", dtype, 0, 2**bits - 1, True,
        tuple(table) + tuple(-each for each in table),
    )  # fmt: skip


def end_of(fmt: Format, bias: float) -> float:
    """Returns the largest value of a format under an exponent bias."""
    return float(fmt.top * 2.0**-bias)


def bias_of(fmt: Format, end: Array | float) -> Array:
    """Returns the exponent bias, f64, under which the largest value is `end`."""
    return np.asarray(np.log2(fmt.top / np.maximum(end, 1e-30)))


def rounded_float(numbers: Array, fmt: Format, scale: Array | float) -> Array:
    """Returns numbers as the nearest values of a format times a scale."""
    return np.asarray(values_of(fmt, nearest(fmt, (numbers / scale).astype(np.float32))) * scale)


@dataclass(frozen=True, slots=True)
class FloatChoice:
    """The float of a layer's weights and of its inputs.

    Args:
        weights: Format of the weights.
        inputs: Format of the inputs.
        weight_scale: f64[N], per output.
        input_scale: For all inputs.
        error: Mean square error of the layer's results on the rows it was chosen on.
    """

    weights: Format
    inputs: Format
    weight_scale: Array
    input_scale: float
    error: float


def searched_floats(matrix: Array, rows: Array, bits: int = 4) -> FloatChoice:
    """Returns the formats and ends of least error in what a layer gives.

    Args:
        matrix: f32[K, N].
        rows: f32[R, K] of its inputs.
        bits: Of both.
    """
    formats = [small_float(bits - 1 - mantissa, mantissa) for mantissa in range(bits - 1)]
    exact = rows @ matrix
    best: FloatChoice | None = None
    for fmt in formats:
        weight_scale = np.abs(matrix).max(0) / fmt.top
        for inputs in formats:
            input_scale = float(np.abs(rows).max()) / inputs.top
            scale = weight_scale
            error = np.inf
            for _ in range(_ROUNDS):
                seen = rounded_float(rows, inputs, input_scale)
                scale = _weight_scale(matrix, fmt, seen, exact)
                held = rounded_float(matrix, fmt, scale)
                input_scale, now = _input_scale(rows, inputs, held, exact)
                if now >= error:
                    break
                error = now
            if best is None or error < best.error:
                best = FloatChoice(fmt, inputs, scale, input_scale, error)
    if best is None:
        raise AssertionError("there is at least one format")
    return best


def _weight_scale(matrix: Array, fmt: Format, rows: Array, exact: Array) -> Array:
    """Returns f64[N]: for every output the end of its grid with the least error."""
    top = np.maximum(np.abs(matrix).max(0), 1e-30)
    least, kept = np.full(matrix.shape[1], np.inf), top / fmt.top
    for step in _STEPS[9::10]:  # every tenth part, as the grids themselves are coarser
        scale = step * top / fmt.top
        error = np.square(rows @ rounded_float(matrix, fmt, scale) - exact).mean(0)
        kept = np.where(error < least, scale, kept)
        least = np.minimum(error, least)
    return np.asarray(kept)


def _input_scale(rows: Array, fmt: Format, matrix: Array, exact: Array) -> tuple[float, float]:
    top = max(float(np.abs(rows).max()), 1e-30)
    scales = [float(step * top / fmt.top) for step in _STEPS[9::10]]
    errors = [
        float(np.square(rounded_float(rows, fmt, scale) @ matrix - exact).mean())
        for scale in scales
    ]
    best = int(np.argmin(errors))
    return scales[best], errors[best]
