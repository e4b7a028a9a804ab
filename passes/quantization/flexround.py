"""FlexRound: what weights are divided by before rounding is learned, element by element.

`W' = s1 round(W / (s1 S2 s3))` with a scale s1 per group, a divisor S2 per weight and s3 per
output, both 1 at the start. What a layer gives is a linear function of W', so that its mean square
error on all samples is `tr E^T H E` with the second moments H of the inputs: its gradient
needs no samples. Rounding passes the gradient on as it is. Lee et al., FlexRound, 2023, eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Encoded, Grid, grid_of, grouped, round_to
from regraft.passes.quantization.formats import Format, nearest, values_of

Array = np.ndarray[Any, Any]

_STEPS = 300
_RATE = 2e-3
_BETAS = (0.9, 0.999)
_TINY = 1e-8


@dataclass(slots=True)
class _Adam:
    """One tensor of logarithms and its averages."""

    value: Array
    first: Array
    second: Array

    @staticmethod
    def zeros(shape: tuple[int, ...]) -> _Adam:
        return _Adam(*(np.zeros(shape, np.float32) for _ in range(3)))

    def step(self, gradient: Array, count: int, rate: float) -> None:
        self.first += (1 - _BETAS[0]) * (gradient - self.first)
        self.second += (1 - _BETAS[1]) * (np.square(gradient) - self.second)
        mean = self.first / (1 - _BETAS[0] ** count)
        square = self.second / (1 - _BETAS[1] ** count)
        self.value -= rate * mean / (np.sqrt(square) + _TINY)


def flexround(
    matrix: Array,
    fmt: Format,
    group: int,
    moments: Array,
    steps: int = _STEPS,
    start: Grid | None = None,
) -> Encoded:
    """Returns the codes of least error met on the way; at the start they are the nearest ones.

    Args:
        matrix: f32[K, N].
        fmt: The format; scales are f32.
        group: Positions of K that share a scale.
        moments: f64[K, K], the sum of x x^T over rows x that were seen, or any multiple of it.
        steps: Updates.
        start: Scales to begin from; default: full ranges.
    """
    grid = start or grid_of(matrix, fmt, group)
    best = round_to(matrix, grid)
    if fmt.scales != "f32":
        return best
    hessian = (moments / max(float(np.trace(moments)) / len(moments), _TINY)).astype(np.float32)
    zero = 0.0 if grid.zero_point is None else _along(grid.zero_point, group, len(matrix))
    scale = _Adam.zeros(grid.scale.shape)
    each = _Adam.zeros(matrix.shape)
    output = _Adam.zeros((1, matrix.shape[1]))
    least = np.inf
    for count in range(1, steps + 1):
        group_scale = grid.scale * np.exp(scale.value)
        wide = _along(group_scale, group, len(matrix))
        divided = matrix / (wide * np.exp(each.value + output.value))
        codes = nearest(fmt, divided, zero)
        value = values_of(fmt, codes) - zero
        error = value * wide - matrix
        pull = hessian @ error
        loss = float(np.vdot(error, pull))
        if loss < least:
            best, least = Encoded(Grid(fmt, group_scale, grid.zero_point, group), codes), loss
        # a code at the end of the range does not follow what it stands for
        is_free = (codes > fmt.low) & (codes < fmt.high) if fmt.is_integer else np.ones_like(codes)
        on_value = pull * wide
        on_divisor = -on_value * divided * is_free
        each_gradient, output_gradient = on_divisor, on_divisor.sum(0, keepdims=True)
        on_scale = grouped(on_value * (value - divided * is_free), group).sum(1)
        rate = _RATE * 0.5 * (1 + np.cos(np.pi * (count - 1) / steps))
        each.step(each_gradient, count, rate)
        output.step(output_gradient, count, rate)
        scale.step(on_scale, count, rate)
    return best


def _along(numbers: Array, group: int, size: int) -> Array:
    """Returns numbers per group [G, N] as [K, N]."""
    return np.repeat(numbers, group, 0)[:size]
