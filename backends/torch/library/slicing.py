"""Slices by bounds that only run time knows, and backward ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def slice_axes(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    """Returns x cut along axes; a backward slice that starts before the front starts there."""
    where = range(len(starts)) if axes is None else axes
    by = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(where, starts, ends, by, strict=True):
        size = x.shape[axis]
        if step < 0:
            start = 0 if start < -size else start
            end = -size - 1 if end in (2**31 - 1, 2**63 - 1) else end
        taken = range(size)[start:end:step]
        if not taken:
            x = x.narrow(axis, 0, 0)
            continue
        low, high = min(taken[0], taken[-1]), max(taken[0], taken[-1])
        x = x.narrow(axis, low, high - low + 1)
        x = x.flip(axis) if step < 0 else x
        if abs(step) > 1:
            x = x.movedim(axis, 0)[:: abs(step)].movedim(0, axis)
    return x
