"""Causal linear attention as a function that differentiates, states included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.backends.triton.kernels.linear_attention import linear_attention_forward


def _keep_linear_attention(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    *tensors, scale, reverse, strict, precision = inputs
    if reverse or strict:
        raise NotImplementedError("linear_attention: second derivatives are not built")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])
    ctx.scale, ctx.precision = scale, precision


def _differentiate_linear_attention(
    ctx: Any, dout: Tensor | None, dfinal: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, decay, state, final = ctx.saved_tensors
    scale, precision = ctx.scale, ctx.precision
    if dout is None:
        dout = q.new_zeros((*q.shape[:3], v.shape[3]))
    before = None if state is None else state.transpose(2, 3)
    after = None if dfinal is None else dfinal / scale  # states are read times the scale
    across = None if after is None else after.transpose(2, 3)
    strict = decay is not None and ctx.needs_input_grad[3]
    run = linear_attention_forward
    dq = run(dout, v, k, decay, before, scale, False, strict, precision)[0]
    dk = run(v, dout, q, decay, across, scale, True, strict, precision)[0]
    dv, first = run(k, q, dout, decay, after, scale, True, False, precision)
    wide, ddecay, dstate = final.dtype, None, None
    if strict:
        # g_t is in the sums from t on of what rows read before, less what is read of them after;
        # what a row reads of itself is in neither, and would not cancel to the last digit
        share = (q.to(wide) * dq).sum(-1) - (k.to(wide) * dk).sum(-1)
        total = share.flip(-1).cumsum(-1).flip(-1)
        if dfinal is not None:
            total = total + (dfinal * final).sum((-1, -2))[..., None]
        ddecay = total.to(decay.dtype)
        own = (dout.to(wide) * v).sum(-1, keepdim=True) * scale
        dq, dk = (dq + own * k).to(q.dtype), (dk + own * q).to(k.dtype)
    if state is not None and ctx.needs_input_grad[4]:
        dstate = first * scale
        if decay is not None and decay.shape[2]:
            dstate = dstate * torch.exp(decay[..., :1, None].to(wide))
        dstate = dstate.to(state.dtype)
    return dq, dk, dv, ddecay, dstate, None, None, None, None


linear_attention_forward.register_autograd(
    _differentiate_linear_attention, setup_context=_keep_linear_attention
)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    epsilon: float = 0.0,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Returns causal linear attention [B, H, T, E], and the state [B, G, D, E] in f32 after it.

    One token is a step of decoding: T = 1 with the state of the step before.

    Args:
        q: Queries [B, H, T, D] after their feature map, of any strides.
        k: Keys [B, G, T, D] after theirs; G divides H.
        v: Values [B, G, T, E].
        decay: Logarithms of the factors of the state, broadcast to [B, G, T], at most 0.
        state: The state before the first token.
        scale: Factor of the result.
        normalize: Whether a row is divided by its sum of products plus `epsilon`: the state's last
            column, one more than v has.
        epsilon: See `normalize`.
        precision: Of products of f32, as `tl.dot` has it.

    Raises:
        ValueError: Heads do not divide, or sizes differ.
    """
    if q.shape[1] % k.shape[1] or k.shape[:3] != v.shape[:3] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"linear_attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; expected "
            "[B, H, T, D], [B, G, T, D], [B, G, T, E] where G divides H"
        )
    if normalize:
        v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    decay = None if decay is None else decay.expand(k.shape[:3])
    group = q.shape[1] // k.shape[1]
    k, v, decay, state = (
        x if x is None or group == 1 else x.repeat_interleave(group, 1)
        for x in (k, v, decay, state)
    )
    out, final = linear_attention_forward(q, k, v, decay, state, scale, False, False, precision)
    if normalize:
        out = out[..., :-1] / (out[..., -1:] + epsilon)
    return out, final if group == 1 else final[:, ::group]
