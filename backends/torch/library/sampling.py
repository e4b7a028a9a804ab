"""Sampling of planes at points, and what is built on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def cubic_kernel(distance: Tensor, a: float) -> Tensor:
    """Returns the cubic convolution kernel (Keys 1981, equation 4) at absolute distances."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0))


def reflect_points(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns points reflected at both ends until they lie between them."""
    span = torch.where(high > low, high - low, 1)
    away = torch.where(points < low, low - points, points - high)
    turns = torch.floor(away / span)
    rest = away - turns * span
    from_low = (points < low) == (turns % 2 == 0)
    reflected = torch.where(from_low, low + rest, high - rest)
    return torch.where((points < low) | (points > high), reflected, points)


def sample_points(x: Tensor, points: Tensor, mode: str, padding: str, corners: bool) -> Tensor:
    """Returns [N, C, P]: planes x [N, C, *s] at points [N, P, k] in pixels.

    Args:
        x: Planes.
        points: Positions; pixel centres are whole numbers.
        mode: `nearest` (half to even), `linear` or `cubic`.
        padding: `zeros`, `border` or `reflection`.
        corners: Whether reflection is about the outer pixel centres instead of the outer edges.
    """
    sizes = torch.tensor(x.shape[2:], dtype=points.dtype, device=x.device)
    low = torch.zeros_like(sizes) if corners else torch.full_like(sizes, -0.5)
    high = sizes - 1 - low
    if mode == "nearest":
        points = points.round()
    if mode != "cubic":  # each tap of a cubic is brought inside on its own
        if padding == "border":
            points = torch.minimum(points.clamp(min=0), sizes - 1)
        elif padding == "reflection":
            points = reflect_points(points, low, high)
    base = points.detach().floor()
    offsets = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}[mode]
    flat = x.flatten(2)
    out = torch.zeros((*x.shape[:2], points.shape[1]), dtype=x.dtype, device=x.device)
    for offset in itertools.product(offsets, repeat=len(x.shape) - 2):
        pixel = base + torch.tensor(offset, dtype=points.dtype, device=x.device)
        distance = (pixel - points).abs()
        if mode == "cubic":
            weight = cubic_kernel(distance, -0.75).prod(-1)
        elif mode == "linear":
            weight = (1 - distance).prod(-1)
        else:
            weight = torch.ones_like(distance[..., 0])
        if padding == "zeros":
            weight = weight * ((pixel >= 0) & (pixel < sizes)).all(-1)
        elif padding == "reflection":
            pixel = reflect_points(pixel, low, high).trunc()
        pixel = torch.minimum(pixel.clamp(min=0), sizes - 1).to(torch.int64)
        index = torch.zeros_like(pixel[..., 0])
        for axis in range(pixel.shape[-1]):
            index = index * x.shape[2 + axis] + pixel[..., axis]
        taken = flat.gather(2, index.unsqueeze(1).expand(-1, x.shape[1], -1))
        out = out + taken * weight.unsqueeze(1).to(x.dtype)
    return out


def sample_grid(x: Tensor, grid: Tensor, mode: str, padding: str, corners: bool) -> Tensor:
    """Returns planes sampled on a grid whose coordinates run from -1 to 1, innermost axis first."""
    sizes = torch.tensor(x.shape[2:], dtype=grid.dtype, device=x.device)
    unit = grid.flip(-1).flatten(1, -2) + 1
    points = unit / 2 * (sizes - 1) if corners else (unit * sizes - 1) / 2
    out = sample_points(x, points, mode, padding, corners)
    return out.reshape(*x.shape[:2], *grid.shape[1:-1])


def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    """Returns a convolution whose taps move by offsets; `offset_groups` of channels share them."""
    kernel, counts = weight.shape[2:], offset.shape[2:]
    rank, batch, channels = len(kernel), x.shape[0], x.shape[1]
    taps, places = kernel.numel(), counts.numel()
    kind = {"dtype": offset.dtype, "device": x.device}
    lines = [torch.arange(k, **kind) * d for k, d in zip(kernel, dilations, strict=True)]
    tap = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)
    tap = tap.reshape(1, taps, rank, *(1,) * rank)
    starts = [
        torch.arange(n, **kind) * s - b for n, s, b in zip(counts, strides, pads, strict=False)
    ]
    window = torch.stack(torch.meshgrid(*starts, indexing="ij"))
    points = offset.reshape(batch * offset_groups, taps, rank, *counts) + tap + window
    points = points.movedim(2, -1).reshape(batch * offset_groups, taps * places, rank)
    planes = x.reshape(batch * offset_groups, channels // offset_groups, *x.shape[2:])
    columns = sample_points(planes, points, "linear", "zeros", False)
    if mask is not None:
        columns = columns * mask.reshape(batch * offset_groups, 1, taps * places)
    columns = columns.reshape(batch, groups, channels // groups * taps, places)
    out = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns
    out = out.reshape(batch, weight.shape[0], *counts)
    return out if bias is None else out + bias.reshape(-1, *(1,) * rank)
