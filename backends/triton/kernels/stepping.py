"""Attention to a cache: by spans of keys where there is one query, by tiles of queries else."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.backends.triton.kernels.attending import attention
from regraft.backends.triton.kernels.decoding import attention_decode


def attention_with_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    offset: int | Tensor = 0,
    window: tuple[int, int] = (-1, -1),
    lengths: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float = 0.0,
    unified: tuple[float, float, float] | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Returns what `attention` does; one query has its keys shared out.

    Args:
        q: [B, H, S, D].
        k: [B, G, T, D].
        v: [B, G, T, E].
        mask: As that of `attention`.
        scale: Factor of the scores; default: D ** -0.5.
        offset: Key position of the first query.
        window: How many keys back and ahead of its position a query sees; -1: all.
        lengths: Number of keys per batch row, [B].
        sinks: [H].
        softcap: As that of `attention`.
        unified: As that of `attention_decode`, for one query.
        precision: As that of `attention`.
    """
    left, right = window
    if q.shape[2] != 1:
        return attention(
            q, k, v, mask, scale=scale, offset=offset, window=window, lengths=lengths,
            sinks=sinks, softcap=softcap, precision=precision,
        )  # fmt: skip
    keys = k.shape[2]
    is_cut = right >= 0 and not (isinstance(offset, int) and offset + right + 1 >= keys)
    is_last = isinstance(offset, int) and offset == keys - 1 and lengths is None
    positions = None
    if is_cut or (left >= 0 and not is_last):
        if isinstance(offset, Tensor):
            positions = offset.reshape(-1).expand(q.shape[0])
        else:
            positions = torch.full((q.shape[0],), offset, device=q.device)
    if is_cut and positions is not None:
        shown = (positions + right + 1).clamp(0, keys)
        lengths = shown if lengths is None else torch.minimum(lengths, shown)
    out = attention_decode(
        q.squeeze(2), k, v, mask, lengths=lengths, positions=positions, sinks=sinks, scale=scale,
        window=left, softcap=softcap, unified=unified, precision=precision,
    )  # fmt: skip
    return out.unsqueeze(2)
