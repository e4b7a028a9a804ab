"""Sliding windows over spatial axes: result sizes, automatic padding, and numpy views of the taps.

Spatial axes are the last ones, in order; pads are `(begin…, end…)` as in ONNX.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, ceildiv, dim_max, dim_min, floordiv
from regraft.ir.errors import TypeInferenceError
from regraft.ir.opspec import Attr, AttrKind

Array = np.ndarray[Any, Any]
Sizes = tuple[int, ...]
Index = tuple[Any, ...]  # of an array; numpy's stubs have no starred form

WINDOW_ATTRS = (
    Attr("strides", AttrKind.INTS),
    Attr("dilations", AttrKind.INTS),
    Attr("pads", AttrKind.INTS),
    # `same_upper`, `same_lower`: pads depend on sizes that are not known yet, `pads` is ignored
    Attr("auto_pad", AttrKind.STR, "none"),
)


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows lie on the spatial axes.

    Args:
        kernel: Taps per axis; symbolic when the weight's shape is.
        strides: Steps between windows.
        dilations: Steps between taps.
        pads: Elements added before each axis, then after each axis.
        auto_pad: `none`, or `same_upper` / `same_lower`: pads such that the result has
            ceil(size / stride) elements, the odd one at the end / at the beginning.
        ceil_mode: Windows may reach beyond the padded end, but not start there.
    """

    kernel: tuple[DimLike, ...]
    strides: Sizes
    dilations: Sizes
    pads: Sizes
    auto_pad: str = "none"
    ceil_mode: bool = False


def windows_of(attrs: Mapping[str, Any], kernel: tuple[DimLike, ...]) -> Windows:
    """Returns the windows that an operator's attributes describe.

    Raises:
        TypeInferenceError: When a stride or dilation is not positive.
    """
    for name in ("strides", "dilations"):
        if any(step < 1 for step in attrs[name] or ()):
            raise TypeInferenceError(f"`{name}` must be positive, they are {list(attrs[name])}")
    return Windows(
        kernel,
        attrs["strides"],
        attrs["dilations"],
        attrs["pads"],
        attrs["auto_pad"],
        attrs.get("ceil_mode", False),
    )


def extent(kernel: DimLike, dilation: int) -> DimLike:
    """Returns how many elements a window spans."""
    return (kernel - 1) * dilation + 1


def padding(
    windows: Windows, sizes: Sequence[DimLike]
) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...]]:
    """Returns the elements added before and after each axis."""
    rank = len(sizes)
    if windows.auto_pad == "none":
        return windows.pads[:rank], windows.pads[rank:]
    begin: list[DimLike] = []
    end: list[DimLike] = []
    for size, kernel, stride, dilation in zip(
        sizes, windows.kernel, windows.strides, windows.dilations, strict=True
    ):
        needed = (ceildiv(size, stride) - 1) * stride + extent(kernel, dilation) - size
        total = dim_max(0, needed)
        half = floordiv(total, 2)
        upper = windows.auto_pad == "same_upper"
        begin.append(half if upper else total - half)
        end.append(total - half if upper else half)
    return tuple(begin), tuple(end)


def static_pads(windows: Windows, sizes: Sequence[DimLike]) -> Sizes | None:
    """Returns explicit pads, or None when they depend on symbolic sizes."""
    begin, end = padding(windows, sizes)
    pads = tuple(pad for pad in (*begin, *end) if isinstance(pad, int))
    return pads if len(pads) == 2 * len(sizes) else None


def window_counts(windows: Windows, sizes: Sequence[DimLike]) -> tuple[DimLike, ...]:
    """Returns how many windows lie on each axis; symbolic where the size is, never negative."""
    if windows.auto_pad != "none":
        pairs = zip(sizes, windows.strides, strict=True)
        return tuple(ceildiv(size, stride) for size, stride in pairs)
    rank = len(sizes)
    return tuple(
        _window_count(
            size,
            windows.kernel[axis],
            windows.strides[axis],
            windows.dilations[axis],
            windows.pads[axis],
            windows.pads[rank + axis],
            windows.ceil_mode,
        )
        for axis, size in enumerate(sizes)
    )


@lru_cache(maxsize=1 << 12)  # the layers of a model have few sizes, and symbolic ones are slow
def _window_count(
    size: DimLike,
    kernel: DimLike,
    stride: int,
    dilation: int,
    begin: int,
    end: int,
    ceil_mode: bool,
) -> DimLike:
    room = size + (begin + end - extent(kernel, dilation))
    if ceil_mode:
        # window j exists when it starts inside: j * stride < begin + size
        count = dim_min(ceildiv(room, stride) + 1, ceildiv(size + begin, stride))
    else:
        count = floordiv(room, stride) + 1
    return max(count, 0) if isinstance(count, int) else count


def static_windows(windows: Windows, sizes: Sizes) -> tuple[Sizes, Sizes, Sizes]:
    """Returns (pads before, pads after, window counts) for known sizes."""
    begin, end = padding(windows, sizes)
    counts = window_counts(windows, sizes)
    return as_ints(begin), as_ints(end), as_ints(counts)


def as_ints(values: Sequence[DimLike]) -> Sizes:
    """Returns sizes that evaluation has bound."""
    ints = tuple(value for value in values if isinstance(value, int))
    if len(ints) != len(values):
        raise AssertionError("window geometry of known sizes is known")
    return ints


def pad_spatial(x: Array, begin: Sizes, end: Sizes, value: float = 0) -> Array:
    """Returns `x` with its last axes padded; negative pads cut."""
    if not any(begin) and not any(end):
        return x
    lead = x.ndim - len(begin)
    spatial = x.shape[lead:]
    sizes = [b + n + e for b, n, e in zip(begin, spatial, end, strict=True)]
    padded = np.full((*x.shape[:lead], *sizes), value, x.dtype)
    target: Index = (...,)
    source: Index = (...,)
    for b, n, size in zip(begin, spatial, sizes, strict=True):
        low, high = max(b, 0), min(b + n, size)
        target += (slice(low, high),)
        source += (slice(low - b, high - b),)
    padded[target] = x[source]
    return padded


def pad_for_windows(
    x: Array, windows: Windows, value: float = 0
) -> tuple[Array, Sizes, Sizes, Sizes]:
    """Pads the spatial axes of `x [N, C, *s]` so that every window lies inside.

    Returns:
        The padded array, the pads before, the declared pads after, and the window counts.
    """
    sizes = x.shape[2:]
    begin, end, counts = static_windows(windows, sizes)
    kernel = as_ints(windows.kernel)
    reach = [
        (count - 1) * stride + (taps - 1) * dilation + 1
        for count, stride, taps, dilation in zip(
            counts, windows.strides, kernel, windows.dilations, strict=True
        )
    ]
    after = tuple(max(e, r - b - n) for e, r, b, n in zip(end, reach, begin, sizes, strict=True))
    return pad_spatial(x, begin, after, value), begin, end, counts


def taps(
    x: Array, kernel: Sizes, strides: Sizes, dilations: Sizes, counts: Sizes
) -> Iterator[tuple[Sizes, Array]]:
    """Yields (tap position, view `[N, C, *counts]` of the element under that tap).

    The views are writable views of `x`, so that a caller may accumulate into them.
    """
    for tap in itertools.product(*map(range, kernel)):
        index: Index = (
            ...,
            *(
                slice(t * d, t * d + (count - 1) * s + 1, s)
                for t, d, s, count in zip(tap, dilations, strides, counts, strict=True)
            ),
        )
        yield tap, x[index]


def windows_view(x: Array, kernel: Sizes, strides: Sizes, dilations: Sizes, counts: Sizes) -> Array:
    """Returns a read-only view `[N, C, *kernel, *counts]` of the windows of `x [N, C, *s]`."""
    lead, steps = x.strides[:2], x.strides[2:]
    tap_steps = tuple(step * d for step, d in zip(steps, dilations, strict=True))
    window_steps = tuple(step * s for step, s in zip(steps, strides, strict=True))
    return np.lib.stride_tricks.as_strided(
        x, (*x.shape[:2], *kernel, *counts), (*lead, *tap_steps, *window_steps), writeable=False
    )


def spatial_labels(prefix: str, rank: int) -> str:
    """Returns fixed labels of `rank` spatial axes for an axis rule: `s0! s1!`."""
    return " ".join(f"{prefix}{axis}!" for axis in range(rank))
