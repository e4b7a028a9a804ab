"""Pools that PyTorch has in another form, and inverses of windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.backends.torch.library.windows import pad_to_windows


def same_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
) -> tuple[int, ...]:
    """Returns pads (begins, ends) for ceil(size / stride) windows."""
    begins, ends = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return (*begins, *ends)


def views_of_taps(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[Tensor]:
    """Returns the element under each tap of all windows, [N, C, *counts] each."""
    counts = [
        (x.shape[2 + i] - (k - 1) * d - 1) // s + 1
        for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True))
    ]
    views = []
    for tap in itertools.product(*map(range, kernel)):
        where = [
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, counts, strides, strict=True)
        ]
        views.append(x[(slice(None), slice(None), *where)])
    return views


def average_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    count_pads: bool,
) -> Tensor:
    """Returns the mean of each window; pads count as zeros or not at all."""
    rank = len(kernel)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    counted = list(pads)
    if count_pads:
        widths = [pads[side * rank + axis] for axis in range(rank)[::-1] for side in (0, 1)]
        ones, counted = F.pad(ones, widths, value=1), [0] * (2 * rank)
    # a window may reach beyond the pads; what lies there is not counted
    padded = pad_to_windows(x, kernel, strides, dilations, pads, ceil_mode, 0)
    missing: list[int] = []
    for axis in range(rank)[::-1]:
        missing += [counted[axis], padded.shape[2 + axis] - counted[axis] - ones.shape[2 + axis]]
    ones = F.pad(ones, missing)
    total = torch.stack(views_of_taps(padded, kernel, strides, dilations)).sum(0)
    return total / torch.stack(views_of_taps(ones, kernel, strides, dilations)).sum(0)


def lp_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    p: int,
) -> Tensor:
    """Returns the p-norm of each window."""
    padded = pad_to_windows(x, kernel, strides, dilations, pads, ceil_mode, 0)
    taps = torch.stack(views_of_taps(padded, kernel, strides, dilations))
    return torch.linalg.vector_norm(taps, p, dim=0)


def max_pool_with_places(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    column_major: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the largest element of each window, and its place in the whole tensor."""
    sizes = x.shape[2:]
    places = torch.arange(sizes.numel(), device=x.device)
    if column_major:
        places = places.reshape(tuple(sizes)[::-1]).permute(tuple(range(len(sizes)))[::-1])
    places = places.reshape(1, 1, *sizes)
    wide = x if x.is_floating_point() else x.double()
    padded = pad_to_windows(wide, kernel, strides, dilations, pads, ceil_mode, -torch.inf)
    located = pad_to_windows(places, kernel, strides, dilations, pads, ceil_mode, -1)
    taps = torch.stack(views_of_taps(padded, kernel, strides, dilations))
    wheres = torch.stack(views_of_taps(located, kernel, strides, dilations))
    # of equal elements the first inside: padding never wins against an element of -inf
    best = torch.where(wheres < 0, -torch.inf, taps).amax(0)
    is_best = (taps == best) & (wheres >= 0)
    first = is_best.to(torch.uint8).argmax(0, keepdim=True)
    values = taps.gather(0, first).squeeze(0).to(x.dtype)
    found = wheres.expand(taps.shape).gather(0, first).squeeze(0)
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * sizes.numel()
    return values, found + planes.reshape(*x.shape[:2], *(1,) * len(sizes))


def unpool(
    x: Tensor,
    indices: Tensor,
    wanted: Sequence[int] | None,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
) -> Tensor:
    """Returns zeros with the elements of x at places in the tensor that was pooled."""
    rank = len(kernel)
    spatial = [
        (size - 1) * strides[i] + kernel[i] - pads[i] - pads[rank + i]
        for i, size in enumerate(x.shape[2:])
    ]
    natural = (*x.shape[:2], *spatial)
    flat = torch.zeros(math.prod(natural), dtype=x.dtype, device=x.device)
    placed = flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(natural)
    if wanted is None or tuple(wanted) == natural:
        return placed
    widths: list[int] = []
    for axis in range(len(natural))[::-1]:
        widths += [0, wanted[axis] - natural[axis]]
    return F.pad(placed, widths)


def fold_columns(
    x: Tensor,
    image: Sequence[int],
    block: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> Tensor:
    """Returns the sum of windows where they lie in an image of any rank."""
    rank, taps = len(block), math.prod(block)
    counts = [
        (image[i] + pads[i] + pads[rank + i] - (block[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(rank)
    ]
    columns = x.reshape(x.shape[0], x.shape[1] // taps, taps, *counts)
    padded = [image[i] + pads[i] + pads[rank + i] for i in range(rank)]
    out = torch.zeros((x.shape[0], x.shape[1] // taps, *padded), dtype=x.dtype, device=x.device)
    for i, tap in enumerate(itertools.product(*map(range, block))):
        where = [
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, counts, strides, strict=True)
        ]
        out[(slice(None), slice(None), *where)] += columns[:, :, i]
    kept = [slice(pads[i], pads[i] + image[i]) for i in range(rank)]
    return out[(slice(None), slice(None), *kept)]
