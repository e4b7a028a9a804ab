"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor, size: int | None = None) -> Tensor:
    """Returns x with channels (r, r + size / 2) turned; those after `size` stay."""
    turned = x if size is None else x[..., :size]
    a, b = turned.chunk(2, -1)
    parts = [a * cos - b * sin, b * cos + a * sin]
    if size is not None:
        parts.append(x[..., size:])
    return torch.cat(parts, -1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, size: int | None = None) -> Tensor:
    """Returns x with channels (2 r, 2 r + 1) turned; those after `size` stay."""
    turned = x if size is None else x[..., :size]
    a, b = turned[..., 0::2], turned[..., 1::2]
    out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return out if size is None else torch.cat((out, x[..., size:]), -1)
