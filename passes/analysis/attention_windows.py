"""Windows: which keys the positions of queries and keys leave visible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, bind, known_equal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """Keys that positions leave visible; see `attention`.

    Args:
        offset: Key position of the first query.
        left: Keys before a query's own that it sees, -1: all.
        right: Keys after it, -1: all.
    """

    offset: DimLike
    left: int
    right: int


ALL = Window(0, -1, -1)
"""Every key is visible."""

Bands = list[tuple[Mapping[str, int], int | None, int | None]]
"""Per binding, the least and largest distance of a visible key, None where unbounded."""


def band_of(visible: Array) -> tuple[int | None, int | None] | None:
    """Returns (least, largest) t - s that is visible, None where unbounded; None for no band."""
    S, T = visible.shape
    distance = np.arange(T) - np.arange(S)[:, None]
    shown = distance[visible]
    low, high = int(shown.min()), int(shown.max())
    if not np.array_equal(visible, (distance >= low) & (distance <= high)):
        return None
    return (None if low == -(S - 1) else low), (None if high == T - 1 else high)


def fit_window(
    bands: Bands,
    sizes: tuple[DimLike, DimLike],
) -> Window | None:
    """Returns the window whose bounds the bands have at every binding."""
    highs = [high for _, _, high in bands]
    lows = [low for _, low, _ in bands]
    if all(low is None for low in lows) and all(high is None for high in highs):
        return ALL
    if None in highs and any(high is not None for high in highs):
        return None
    if None in lows and any(low is not None for low in lows):
        return None
    S, T = sizes
    anchors = highs if highs[0] is not None else lows
    for offset in (0, T - S):
        if offset == 0 and not known_equal(S, T) and _are_equal(bands, sizes):
            return None  # the sizes do not tell where the first query stands
        shifts: set[int] = set()
        for (env, _, _), anchor in zip(bands, anchors, strict=True):
            value = bind(offset, env)
            if anchor is not None and isinstance(value, int):
                shifts.add(anchor - value)
        if len(shifts) != 1:
            continue
        shift = shifts.pop()
        if highs[0] is None:
            return Window(offset, -shift, -1) if shift <= 0 else None
        if lows[0] is None:
            return Window(offset, -1, shift) if shift >= 0 else None
        widths = {high - low for _, low, high in bands if low is not None and high is not None}
        if len(widths) == 1 and 0 <= shift <= (width := widths.pop()):
            return Window(offset, width - shift, shift)
    return None


def _are_equal(
    bands: Bands,
    sizes: tuple[DimLike, DimLike],
) -> bool:
    return all(bind(sizes[0], env) == bind(sizes[1], env) for env, _, _ in bands)


def joined(a: Window, b: Window) -> Window | None:
    """Returns the keys that both windows show, None when that is no window."""
    if a == ALL or b == ALL:
        return b if a == ALL else a
    if a.offset != b.offset:
        return None
    left = max(a.left, b.left) if -1 in (a.left, b.left) else min(a.left, b.left)
    right = max(a.right, b.right) if -1 in (a.right, b.right) else min(a.right, b.right)
    return Window(a.offset, left, right)
