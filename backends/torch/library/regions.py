"""Pooling of regions of interest."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def align_regions(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    height: int,
    width: int,
    scale: float,
    mode: str,
    sampling_ratio: int,
    half_pixel: bool,
) -> Tensor:
    """Returns [R, C, height, width]: interpolated samples of each bin, averaged or their maximum.

    Source: ONNX RoiAlign-22.
    """
    edges = rois * scale - (0.5 if half_pixel else 0.0)
    if sampling_ratio > 0 or len(rois) == 0:
        num = max(sampling_ratio, 1)
        return sample_regions(x, edges, batch, height, width, num, num, mode, half_pixel)
    parts = []
    for i in range(len(rois)):  # the number of samples depends on each region's size
        left, top, right, bottom = edges[i].tolist()
        least = 0.0 if half_pixel else 1.0
        num_y = math.ceil(max(bottom - top, least) / height)
        num_x = math.ceil(max(right - left, least) / width)
        if num_y <= 0 or num_x <= 0:
            parts.append(x.new_zeros((1, x.shape[1], height, width)))
            continue
        each, where = edges[i : i + 1], batch[i : i + 1]
        part = sample_regions(x, each, where, height, width, num_y, num_x, mode, half_pixel)
        parts.append(part)
    return torch.cat(parts)


def sample_regions(
    x: Tensor,
    edges: Tensor,
    batch: Tensor,
    height: int,
    width: int,
    num_y: int,
    num_x: int,
    mode: str,
    half_pixel: bool,
) -> Tensor:
    """Returns the bins of regions (left, top, right, bottom in pixels) with fixed sample counts."""
    left, top, right, bottom = edges.unbind(1)
    wide, tall = right - left, bottom - top
    if not half_pixel:
        wide, tall = wide.clamp(min=1), tall.clamp(min=1)
    y0, y1, fy, in_y = sample_line(top, tall, height, num_y, x.shape[2])
    x0, x1, fx, in_x = sample_line(left, wide, width, num_x, x.shape[3])
    inside = in_y.unsqueeze(2) & in_x.unsqueeze(1)
    planes = x.movedim(1, -1)  # the channels of a pixel lie together
    image = batch.to(torch.int64).reshape(-1, 1, 1)
    corners = [
        planes[image, ys.unsqueeze(2), xs.unsqueeze(1)]
        * (wy.unsqueeze(2) * wx.unsqueeze(1) * inside).unsqueeze(-1).to(x.dtype)
        for ys, wy in ((y0, 1 - fy), (y1, fy))
        for xs, wx in ((x0, 1 - fx), (x1, fx))
    ]
    shape = (len(edges), height, num_y, width, num_x, x.shape[1])
    if mode == "max":
        # the largest weighted corner, as the operator defines it, not the interpolated value
        best = torch.stack(corners).amax(0).reshape(shape).amax((2, 4))
        return best.movedim(-1, 1)
    total = corners[0] + corners[1] + corners[2] + corners[3]
    return total.reshape(shape).mean((2, 4)).movedim(-1, 1)


def sample_line(
    start: Tensor, size: Tensor, bins: int, samples: int, limit: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (lower pixel, upper pixel, weight of the upper, inside) of samples in all bins."""
    bin_idx = torch.arange(bins, dtype=start.dtype, device=start.device).unsqueeze(1)
    within = (torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5) / samples
    steps = (bin_idx + within).reshape(1, -1)
    pos = start.unsqueeze(1) + steps * (size / bins).unsqueeze(1)
    inside = (pos >= -1) & (pos <= limit)
    pos = pos.clamp(0, limit - 1)
    low = pos.detach().floor().to(torch.int64)
    return low, (low + 1).clamp(max=limit - 1), pos - low, inside


def pool_regions(x: Tensor, rois: Tensor, height: int, width: int, scale: float) -> Tensor:
    """Returns [R, C, height, width]: the largest element of each bin of whole pixels.

    Source: ONNX MaxRoiPool-22.
    """
    scaled = rois[:, 1:].double() * scale
    edges = torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled))
    parts = []
    for image, (left, top, right, bottom) in zip(
        rois[:, 0].tolist(), edges.to(torch.int64).tolist(), strict=True
    ):
        rows = bin_edges(top, max(bottom - top + 1, 1), height, x.shape[2])
        columns = bin_edges(left, max(right - left + 1, 1), width, x.shape[3])
        bins = [
            x[int(image), :, y0:y1, x0:x1].amax((1, 2))
            if y1 > y0 and x1 > x0
            else x.new_zeros(x.shape[1])
            for y0, y1 in rows
            for x0, x1 in columns
        ]
        parts.append(torch.stack(bins, 1).reshape(x.shape[1], height, width))
    return torch.stack(parts) if parts else x.new_zeros((0, x.shape[1], height, width))


def bin_edges(start: int, size: int, bins: int, limit: int) -> list[tuple[int, int]]:
    """Returns the first and the end pixel of each bin, within the plane."""
    step = size / bins
    edges = [(start + math.floor(i * step), start + math.ceil((i + 1) * step)) for i in range(bins)]
    return [(min(max(a, 0), limit), min(max(b, 0), limit)) for a, b in edges]
