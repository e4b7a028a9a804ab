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
    """Returns what `attention` does; one query without a mask has its keys shared out.

    A mask, and a window whose end is not the last key, take `attention` whatever S is.

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
    # the keys that a window shows end at one place, unless lengths cut off what it ends at
    is_span = left < 0 or (right == 0 and lengths is None)
    if q.shape[2] != 1 or mask is not None or not is_span:
        return attention(
            q, k, v, mask, scale=scale, offset=offset, window=window, lengths=lengths,
            sinks=sinks, softcap=softcap, precision=precision,
        )  # fmt: skip
    if right >= 0 and not (isinstance(offset, int) and offset + right + 1 >= k.shape[2]):
        shown = torch.as_tensor(offset, device=q.device).reshape(-1) + right + 1
        shown = shown.clamp(0, k.shape[2]).expand(q.shape[0])
        lengths = shown if lengths is None else torch.minimum(lengths, shown)
    out = attention_decode(
        q.squeeze(2), k, v, lengths=lengths, sinks=sinks, scale=scale, window=left,
        softcap=softcap, unified=unified, precision=precision,
    )  # fmt: skip
    return out.unsqueeze(2)
