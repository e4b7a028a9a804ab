"""Interpolation in numpy: resizing along one axis, and sampling at points."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Axis1D:
    """How one axis is resized; the fields are those of `resize`."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool
    scale: float
    size: int
    roi: tuple[float, float]


def resize_axis(x: Array, axis: int, setting: Axis1D) -> Array:
    """Returns `x` with one axis resized to `setting.size`."""
    old = x.shape[axis]
    unchanged = setting.scale == 1 and setting.size == old
    if (unchanged and setting.coordinates != "tf_crop_and_resize") or not x.size:
        return x if old == setting.size else np.empty(_resized(x, axis, setting.size), x.dtype)
    # a choice of pixel must fall on the side where runtimes, which compute in f32, have it
    real: type[np.floating[Any]] = np.float32 if setting.mode == "nearest" else np.float64
    source = _source_positions(old, setting, real)
    outside = (source < 0) | (source > old - 1)
    if setting.mode == "nearest":
        pixel = np.clip(_nearest(source, setting.nearest).astype(np.int64), 0, old - 1)
        out = np.take(x, pixel, axis=axis)
    else:
        weights = _weights(source, old, setting).astype(x.dtype)
        out = np.moveaxis(np.moveaxis(x, axis, -1) @ weights.T, -1, axis)
    if setting.coordinates == "tf_crop_and_resize" and outside.any():
        shape = [1] * x.ndim
        shape[axis] = setting.size
        out = np.where(outside.reshape(shape), x.dtype.type(setting.extrapolation), out)
    return out


def _resized(x: Array, axis: int, size: int) -> tuple[int, ...]:
    return (*x.shape[:axis], size, *x.shape[axis + 1 :])


def _source_positions(old: int, setting: Axis1D, real: type[np.floating[Any]]) -> Array:
    """Returns where each result position lies in the source."""
    pos = np.arange(setting.size, dtype=real)
    scale, one, half = real(setting.scale), real(1), real(0.5)
    # the exact result size, which truncation made whole
    exact = scale * real(old)
    start, end = (real(edge) for edge in setting.roi)
    match setting.coordinates:
        case "half_pixel":
            result = (pos + half) / scale - half
        case "pytorch_half_pixel":
            result = (pos + half) / scale - half if setting.size > 1 else np.zeros(1, real)
        case "half_pixel_symmetric":
            offset = real(old) * half * (one - real(setting.size) / exact)
            result = offset + (pos + half) / scale - half
        case "align_corners":
            result = pos * 0 if exact == 1 else pos * real(old - 1) / (exact - one)
        case "asymmetric":
            result = pos / scale
        case "tf_half_pixel_for_nn":
            result = (pos + half) / scale
        case "tf_crop_and_resize":
            span = real(old - 1)
            if setting.size > 1:
                result = start * span + pos * (end - start) * span / real(setting.size - 1)
            else:
                result = np.full(1, half * (start + end) * span, real)
        case other:
            raise ValueError(f"resize has no coordinates `{other}`")
    return np.asarray(result, real)


def _nearest(source: Array, mode: str) -> Array:
    match mode:
        case "round_prefer_floor":
            return np.asarray(np.ceil(source - source.dtype.type(0.5)))
        case "round_prefer_ceil":
            return np.asarray(np.floor(source + source.dtype.type(0.5)))
        case "floor":
            return np.floor(source)
        case "ceil":
            return np.ceil(source)
        case other:
            raise ValueError(f"resize has no nearest mode `{other}`")


def _weights(source: Array, old: int, setting: Axis1D) -> Array:
    """Returns the matrix `[new, old]` that interpolates linearly or cubically."""
    radius = 1.0 if setting.mode == "linear" else 2.0
    stretch = min(setting.scale, 1.0) if setting.antialias else 1.0
    reach = int(np.ceil(radius / stretch))
    base = np.floor(source).astype(np.int64)
    pixel = base[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(pixel - source[:, None]) * stretch
    if setting.mode == "linear":
        weight = np.clip(1 - distance, 0, 1)
    else:
        weight = cubic_weight(distance, setting.cubic_a)
    if setting.exclude_outside:
        weight = np.where((pixel < 0) | (pixel >= old), 0, weight)
    if setting.exclude_outside or setting.antialias:
        total = weight.sum(axis=1, keepdims=True)
        weight = weight / np.where(total == 0, 1, total)
    matrix = np.zeros((len(source), old))
    rows = np.broadcast_to(np.arange(len(source))[:, None], pixel.shape)
    np.add.at(matrix, (rows, np.clip(pixel, 0, old - 1)), weight)
    return matrix


def cubic_weight(distance: Array, a: float) -> Array:
    """Returns the cubic convolution kernel (Keys 1981, equation 4) at absolute distances."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def sample_points(x: Array, points: Array, mode: str, padding: str, *, corners: bool) -> Array:
    """Returns `f[N, C, P]`: `x f[N, C, *s]` at `points f[N, P, k]` in pixels, first axis first.

    Args:
        x: Planes.
        points: Positions; pixel centres are whole numbers.
        mode: `nearest` (half to even), `linear` or `cubic`.
        padding: `zeros`, `border` or `reflection`.
        corners: Whether reflection is about the outer pixel centres instead of the outer edges.
    """
    sizes = np.array(x.shape[2:])
    low = np.zeros(len(sizes)) if corners else np.full(len(sizes), -0.5)
    high = sizes - 1 - low
    if mode == "nearest":
        points = np.rint(points)
    if mode != "cubic":
        # each tap of a cubic is brought inside on its own: its base may lie outside
        points = _into_border(points, low, high, sizes, padding)
    base = np.floor(points)
    offsets = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}[mode]
    flat = x.reshape(*x.shape[:2], -1)
    out = np.zeros((*x.shape[:2], points.shape[1]), x.dtype)
    steps = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    for offset in itertools.product(offsets, repeat=len(sizes)):
        pixel = base + np.array(offset)
        distance = np.abs(pixel - points)
        if mode == "cubic":
            weight = cubic_weight(distance, -0.75).prod(axis=-1)
        else:
            weight = (1 - distance).prod(axis=-1) if mode == "linear" else np.ones(points.shape[:2])
        inside = ((pixel >= 0) & (pixel < sizes)).all(axis=-1)
        if padding == "zeros":
            weight = weight * inside
        elif padding == "reflection":
            pixel = np.trunc(_reflect(pixel, low, high))
        pixel = np.clip(pixel, 0, sizes - 1)
        index = (pixel.astype(np.int64) * steps).sum(axis=-1)
        for image in range(x.shape[0]):
            out[image] += flat[image][:, index[image]] * weight[image].astype(x.dtype)
    return out


def _into_border(points: Array, low: Array, high: Array, sizes: Array, padding: str) -> Array:
    beyond = (points < low) | (points > high)
    if padding == "border":
        return np.where(beyond, np.clip(points, 0, sizes - 1), points)
    if padding == "reflection":
        return np.where(beyond, _reflect(points, low, high), points)
    return points


def _reflect(points: Array, low: Array, high: Array) -> Array:
    span = np.where(high > low, high - low, 1)
    away = np.where(points < low, low - points, points - high)
    turns = np.floor(away / span)
    rest = away - turns * span
    from_low = (points < low) == (turns % 2 == 0)
    reflected = np.where(from_low, low + rest, high - rest)
    return np.where((points < low) | (points > high), reflected, points)
