"""Interpolation along axes with every choice of coordinates that ONNX has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.backends.torch.library.sampling import cubic_kernel


def resize_axes(
    x: Tensor,
    axes: Sequence[int],
    mode: str,
    coordinates: str,
    nearest: str,
    cubic_a: float,
    exclude_outside: bool,
    extrapolation: float,
    antialias: bool,
    aspect: str,
    roi: Sequence[float] = (),
    scales: Sequence[float] = (),
    sizes: Sequence[int] = (),
) -> Tensor:
    """Returns x with axes resized, by `scales` or to `sizes`; whole numbers are rounded.

    Source: ONNX Resize-19.
    """
    old = [x.shape[axis] for axis in axes]
    if scales:
        new = [_whole(n, f) for n, f in zip(old, scales, strict=True)]
    else:
        new = list(sizes)
        scales = [b / a if a else 1.0 for a, b in zip(old, new, strict=True)]
        if aspect != "stretch":
            factor = min(scales) if aspect == "not_larger" else max(scales)
            scales = [factor] * len(axes)
            new = [int(factor * n + 0.5) for n in old]
    out = x if x.is_floating_point() or mode == "nearest" else x.to(torch.float32)
    for i, axis in enumerate(axes):
        crop = coordinates == "tf_crop_and_resize"
        if scales[i] == 1 and new[i] == old[i] and not crop:
            continue
        # a choice of pixel must fall on the side where runtimes, which compute in f32, have it
        real = torch.float32 if mode == "nearest" else torch.float64
        region = (roi[i], roi[len(axes) + i]) if roi else (0.0, 1.0)
        source = source_positions(old[i], new[i], scales[i], coordinates, region, real, x.device)
        outside = (source < 0) | (source > old[i] - 1)
        if mode == "nearest":
            out = out.index_select(axis, nearest_pixels(source, nearest).clamp(0, old[i] - 1))
        else:
            stretch = min(scales[i], 1.0) if antialias else 1.0
            radius = 1 if mode == "linear" else 2
            weights = resize_weights(
                source, old[i], radius, stretch, cubic_a, exclude_outside, antialias
            )
            out = (out.movedim(axis, -1) @ weights.to(out.dtype).t()).movedim(-1, axis)
        if crop:
            shape = [-1 if a == axis else 1 for a in range(x.dim())]
            out = out.masked_fill(outside.reshape(shape), extrapolation)
    if out.dtype == x.dtype:
        return out
    limits = torch.iinfo(x.dtype)
    return out.round().clamp(limits.min, limits.max).to(x.dtype)


def _whole(size: int, scale: float) -> int:
    # in f32, where 10 * 0.7 is 7 and not 6.999…
    return int(torch.floor(torch.tensor(size, dtype=torch.float32) * scale))


def source_positions(
    old: int,
    new: int,
    factor: float,
    coordinates: str,
    region: tuple[float, float],
    real: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Returns where each result position lies in the source.

    Raises:
        ValueError: For coordinates that ONNX does not know.
    """
    pos = torch.arange(new, dtype=real, device=device)
    scale = torch.tensor(factor, dtype=real, device=device)
    exact = scale * old  # the result size before truncation
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and new > 1):
        return (pos + 0.5) / scale - 0.5
    if coordinates == "pytorch_half_pixel":
        return pos * 0
    if coordinates == "half_pixel_symmetric":
        return old * 0.5 * (1 - new / exact) + (pos + 0.5) / scale - 0.5
    if coordinates == "align_corners":
        return pos * 0 if exact == 1 else pos * (old - 1) / (exact - 1)
    if coordinates == "asymmetric":
        return pos / scale
    if coordinates == "tf_half_pixel_for_nn":
        return (pos + 0.5) / scale
    if coordinates == "tf_crop_and_resize":
        start, end = region
        if new > 1:
            return start * (old - 1) + pos * (end - start) * (old - 1) / (new - 1)
        return torch.full_like(pos, 0.5 * (start + end) * (old - 1))
    raise ValueError(f"resize has no coordinates `{coordinates}`")


def nearest_pixels(source: Tensor, nearest: str) -> Tensor:
    """Returns the pixel that each position rounds to.

    Raises:
        ValueError: For a rounding that ONNX does not know.
    """
    match nearest:
        case "round_prefer_floor":
            rounded = torch.ceil(source - 0.5)
        case "round_prefer_ceil":
            rounded = torch.floor(source + 0.5)
        case "floor":
            rounded = torch.floor(source)
        case "ceil":
            rounded = torch.ceil(source)
        case _:
            raise ValueError(f"resize has no nearest mode `{nearest}`")
    return rounded.to(torch.int64)


def resize_weights(
    source: Tensor,
    old: int,
    radius: int,
    stretch: float,
    cubic_a: float,
    exclude_outside: bool,
    antialias: bool,
) -> Tensor:
    """Returns the matrix [new, old] that interpolates linearly (radius 1) or cubically (2)."""
    reach = math.ceil(radius / stretch)
    taps = torch.arange(1 - reach, reach + 1, device=source.device)
    pixel = source.floor().to(torch.int64).unsqueeze(1) + taps
    distance = (pixel - source.unsqueeze(1)).abs() * stretch
    weight = (1 - distance).clamp(0, 1) if radius == 1 else cubic_kernel(distance, cubic_a)
    if exclude_outside:
        weight = weight.masked_fill((pixel < 0) | (pixel >= old), 0)
    if exclude_outside or antialias:
        total = weight.sum(1, keepdim=True)
        weight = weight / torch.where(total == 0, 1, total)
    matrix = torch.zeros((len(source), old), dtype=weight.dtype, device=source.device)
    return matrix.scatter_add(1, pixel.clamp(0, old - 1), weight)
