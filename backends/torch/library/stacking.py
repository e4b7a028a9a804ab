"""Collected results of loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stack_rows(
    rows: Sequence[Tensor],
    dim: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Returns the results of all iterations along a new axis; of none, an empty tensor."""
    if rows:
        return torch.stack(list(rows), dim)
    sizes = list(shape)
    sizes.insert(dim % (len(sizes) + 1), 0)
    return torch.empty(sizes, dtype=dtype, device=device)
