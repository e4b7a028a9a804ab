"""Attention with soft caps, sinks, windows and lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(
    q: Tensor,
    k: Tensor,
    offset: int | Tensor,
    left: int,
    right: int,
    lengths: Tensor | None = None,
) -> Tensor:
    """Returns which keys a query sees, bool [S, T] or [B, 1, S, T].

    Args:
        q: Queries [B, H, S, D].
        k: Keys [B, H, T, D].
        offset: Key position of the first query; one, or one per batch row.
        left: How many keys back a query sees; -1: all.
        right: How many keys ahead; -1: all.
        lengths: Number of keys per batch row.
    """
    keys = torch.arange(k.shape[2], device=q.device)
    rows = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
    rows = rows + (offset.reshape(-1, 1, 1, 1) if isinstance(offset, Tensor) else offset)
    visible = keys <= rows + right if right >= 0 else torch.ones_like(keys <= rows)
    if left >= 0:
        visible = visible & (keys >= rows - left)
    if lengths is not None:
        visible = visible & (keys < lengths.reshape(-1, 1, 1, 1))
    return visible


def hide_keys(mask: Tensor, visible: Tensor) -> Tensor:
    """Returns a mask that also hides what positions hide."""
    if mask.dtype == torch.bool:
        return mask & visible
    return torch.where(visible, mask, -torch.inf)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    visible: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float = 0.0,
    mask_first: bool = False,
    softmax_dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns attention of q [B, H, S, D] to k, v [B, H / groups, T, D]; no key gives zeros.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: bool (False hides) or float (added), broadcast to [B, H, S, T].
        scale: Factor of the products.
        visible: Keys that positions leave visible.
        sinks: [H], a further score per head that takes weight but has no value.
        softcap: Scores become softcap * tanh(score / softcap).
        mask_first: A float mask is added before the soft cap.
        softmax_dtype: Element type of the softmax; None: that of q.
    """
    B, H, S, _ = q.shape
    heads, T = k.shape[1], k.shape[2]
    grouped = q.reshape(B, heads, H // heads * S, q.shape[3])
    scores = ((grouped * scale) @ k.transpose(-1, -2)).reshape(B, H, S, T)
    if mask is not None and mask.dtype == torch.bool:
        visible = mask if visible is None else mask & visible
        mask = None
    if mask is not None and mask_first:
        scores = scores + mask
        shown = mask != -torch.inf  # the cap would make a hidden score finite
        visible = shown if visible is None else visible & shown
        mask = None
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if visible is not None:
        scores = torch.where(visible, scores, -torch.inf)
    scores = scores.to(softmax_dtype or q.dtype)
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, H, 1, 1).expand(B, H, S, 1)
        weights = torch.cat((scores, column), -1).softmax(-1)[..., :T]
    else:
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        # a row of zeros has a softmax with a gradient; a row of -inf has none
        weights = scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    weights = weights.to(q.dtype).reshape(B, heads, H // heads * S, T)
    return (weights @ v).reshape(B, H, S, v.shape[3])
