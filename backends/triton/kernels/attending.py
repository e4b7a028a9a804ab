"""Attention as a function that differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.backends.triton.kernels.attention import attention_forward
from regraft.backends.triton.kernels.attention_backward import attention_backward
from regraft.backends.triton.kernels.attention_tiles import positive_scale
from regraft.backends.triton.kernels.operands import check_attention, in_autocast


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, softcap, offset, left, right, low, high, precision = inputs
    out, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(*tensors, out, sums)
    ctx.settings = (scale, softcap, offset, left, right, low, high, precision)


def _differentiate_attention(ctx: Any, dout: Tensor, dsums: None) -> tuple[Tensor | None, ...]:
    q, k, v, mask, lengths, offsets, sinks, out, sums = ctx.saved_tensors
    wants_mask = mask is not None and ctx.needs_input_grad[3]
    dq, dk, dv, delta, ds = attention_backward(
        dout, q, k, v, mask, lengths, offsets, out, sums, *ctx.settings, wants_mask
    )
    dmask = mask_gradient(ds, mask) if wants_mask else None
    dsinks = None
    if sinks is not None and ctx.needs_input_grad[6]:
        share = torch.exp(sinks.to(sums.dtype).reshape(1, -1, 1) - sums[..., 0] - sums[..., 1])
        dsinks = -(share * delta).sum((0, 2)).to(sinks.dtype)
    return dq, dk, dv, dmask, None, None, dsinks, *(None,) * len(ctx.settings)


def mask_gradient(ds: Tensor, mask: Tensor) -> Tensor:
    """Returns the gradient by a mask that was broadcast, of that by the scores [B, H, S, T]."""
    shape = *(1,) * (4 - mask.ndim), *(int(size) for size in mask.shape)
    return ds.sum_to_size(shape).reshape(mask.shape).to(mask.dtype)


attention_forward.register_autograd(_differentiate_attention, setup_context=_keep_attention)


def attention(
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
    clip: tuple[float, float] = (0.0, 1.0),
    precision: str = "ieee",
) -> Tensor:
    """Returns attention of q [B, H, S, D] to k [B, G, T, D] and v [B, G, T, E], as [B, H, S, E].

    Args:
        q: Queries, of any strides.
        k: Keys; G divides H.
        v: Values.
        mask: bool (False hides) or float (added), broadcast to [B, H, S, T].
        scale: Factor of the scores; default: D ** -0.5.
        offset: Key position of the first query; one, or one per batch row as a tensor [B].
        window: How many keys back and ahead of its position a query sees; -1: all. (-1, 0) is
            causal.
        lengths: Number of keys per batch row, [B].
        sinks: [H], a further score per head that takes weight but has no value.
        softcap: Scores become softcap * tanh(score / softcap).
        clip: (low, high): weights are clip((high - low) * softmax + low, 0, 1); low is at most 0.
        precision: Of products of f32, as `tl.dot` has it: `ieee`, `tf32`, `tf32x3`.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Sizes differ, or `low` is above 0, which would give hidden keys weight.
    """
    q, k, v = in_autocast(q, k, v)
    check_attention("attention", q, k, v, mask, lengths, sinks, window, softcap, precision)
    if clip[0] > 0:
        raise ValueError(f"attention: `clip` begins at {clip[0]}, expected at most 0")
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    lengths = None if lengths is None else lengths.contiguous()
    offsets = offset.reshape(-1).expand(q.shape[0]) if isinstance(offset, Tensor) else None
    q, scale = positive_scale(q, q.shape[3] ** -0.5 if scale is None else scale)
    out: Tensor = attention_forward(
        q, k, v, mask, lengths, None if offsets is None else offsets.contiguous(), sinks,
        scale, softcap, offset if isinstance(offset, int) else 0, *window, *clip, precision,
    )[0]  # fmt: skip
    return out
