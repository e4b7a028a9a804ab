"""Rotary position embedding of queries and keys in one launch.

(a, b) -> (a cos - b sin, b cos + a sin) for pairs (a, b) that are the halves of a head (GPT-NeoX,
Llama) or neighbours (GPT-J). Source: Su et al. 2021, "RoFormer", equation 34. The gradient is
the rotation by the opposite angle.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operands import check_operands
from regraft.backends.triton.kernels.operators import operator, wrap_triton


@triton.jit
def rotate_heads(
    x_ptr,
    out_ptr,
    x_stride,
    out_stride,
    first_head,
    num_heads,
    cos,
    sin,
    P,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates HEADS heads of one position; cos and sin are [1, BLOCK], P of them valid."""
    head = (first_head + tl.arange(0, HEADS)[:, None]).to(tl.int64)
    pair = tl.arange(0, BLOCK)[None, :]
    mask = (head < num_heads) & (pair < P)
    dtype = out_ptr.dtype.element_ty
    if INTERLEAVED:
        # read as a row and split in registers: neighbours apart would be reads of one element
        both = tl.arange(0, 2 * BLOCK)[None, :]
        both_mask = (head < num_heads) & (both < 2 * P)
        row = tl.load(x_ptr + head * x_stride + both, mask=both_mask, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(row, [HEADS, BLOCK, 2]))
        turned = tl.join(a * cos - b * sin, b * cos + a * sin)
        turned = tl.reshape(turned, [HEADS, 2 * BLOCK])
        tl.store(out_ptr + head * out_stride + both, turned.to(dtype), mask=both_mask)
    else:
        a = tl.load(x_ptr + head * x_stride + pair, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + head * x_stride + pair + P, mask=mask, other=0.0).to(tl.float32)
        out = out_ptr + head * out_stride + pair
        tl.store(out, (a * cos - b * sin).to(dtype), mask=mask)
        tl.store(out + P, (b * cos + a * sin).to(dtype), mask=mask)


@triton.jit
def rope_kernel(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    q_batch_stride,
    q_head_stride,
    q_position_stride,
    k_batch_stride,
    k_head_stride,
    k_position_stride,
    table_batch_stride,
    table_position_stride,
    q_heads,
    k_heads,
    S,
    P,
    INVERSE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates all heads of one position of one batch row, reading its cos and sin once."""
    batch = (tl.program_id(0) // S).to(tl.int64)
    position = (tl.program_id(0) % S).to(tl.int64)
    pair = tl.arange(0, BLOCK)[None, :]
    angle = batch * table_batch_stride + position * table_position_stride + pair
    cos = tl.load(cos_ptr + angle, mask=pair < P, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=pair < P, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    q = q_ptr + batch * q_batch_stride + position * q_position_stride
    q_out = q_out_ptr + (batch * q_heads * S + position) * (2 * P)
    for head in range(0, q_heads, HEADS):
        rotate_heads(
            q,
            q_out,
            q_head_stride,
            S * 2 * P,
            head,
            q_heads,
            cos,
            sin,
            P,
            INTERLEAVED,
            HEADS,
            BLOCK,
        )
    k = k_ptr + batch * k_batch_stride + position * k_position_stride
    k_out = k_out_ptr + (batch * k_heads * S + position) * (2 * P)
    for head in range(0, k_heads, HEADS):
        rotate_heads(
            k,
            k_out,
            k_head_stride,
            S * 2 * P,
            head,
            k_heads,
            cos,
            sin,
            P,
            INTERLEAVED,
            HEADS,
            BLOCK,
        )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if cos.ndim == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def reference_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Returns q and k rotated, each in its dtype."""
    angle = -sin if inverse else sin
    turned_q = _rotate(q, cos, angle, interleaved).to(q.dtype)
    return turned_q, _rotate(k, cos, angle, interleaved).to(k.dtype)


def _allocate_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    turned_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return turned_q, torch.empty(k.shape, dtype=k.dtype, device=k.device)


def _launch_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    turned_q, turned_k = _allocate_rope(q, k, cos, sin, interleaved, inverse)
    B, H, S, D = q.shape
    if B * S * D == 0:
        return turned_q, turned_k
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    config = config_for("rope", q, D)
    wrap_triton(rope_kernel)[(B * S,)](
        q,
        k,
        cos,
        sin,
        turned_q,
        turned_k,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        k.stride(0),
        k.stride(1),
        k.stride(2),
        cos.stride(0) if cos.ndim == 3 and cos.shape[0] != 1 else 0,
        cos.stride(-2),
        H,
        k.shape[1],
        S,
        D // 2,
        INVERSE=inverse,
        INTERLEAVED=interleaved,
        HEADS=config["heads"],
        BLOCK=triton.next_power_of_2(D // 2),
        num_warps=config["warps"],
    )
    return turned_q, turned_k


rotate = operator(
    "rope", _launch_rope, allocate=_allocate_rope, reference=reference_rope, kernel=rope_kernel
)


def _table_gradients(
    x: Tensor, dx: Tensor, cos: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of what x [B, H, S, D] was turned by, in f32, as `cos` is."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dx = x.to(wide), dx.to(wide)
    if interleaved:
        a, b, da, db = x[..., 0::2], x[..., 1::2], dx[..., 0::2], dx[..., 1::2]
    else:
        (a, b), (da, db) = x.chunk(2, -1), dx.chunk(2, -1)
    dcos, dsin = (a * da + b * db).sum(1), (a * db - b * da).sum(1)
    dsin = -dsin if inverse else dsin
    shape = cos.shape if cos.ndim == 3 else (1, *cos.shape)
    return dcos.sum_to_size(shape).reshape(cos.shape), dsin.sum_to_size(shape).reshape(cos.shape)


def _keep_rope(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, cos, sin, interleaved, inverse = inputs
    ctx.has_tables = any(ctx.needs_input_grad[2:4])
    ctx.save_for_backward(cos, sin, *((q, k) if ctx.has_tables else ()))
    ctx.interleaved = interleaved
    ctx.inverse = inverse


def _differentiate_rope(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin, *turned = ctx.saved_tensors
    tables: list[Tensor | None] = [None, None]
    if ctx.has_tables:
        of_q, of_k = (
            _table_gradients(x, dx, cos, ctx.interleaved, ctx.inverse)
            for x, dx in zip(turned, (dq, dk), strict=True)
        )
        tables = [(each + other).to(cos.dtype) for each, other in zip(of_q, of_k, strict=True)]
    dq, dk = rotate(dq, dk, cos, sin, ctx.interleaved, not ctx.inverse)
    return dq, dk, *tables, None, None


rotate.register_autograd(_differentiate_rope, setup_context=_keep_rope)


def _check_rope(what: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raises where heads and tables do not go together."""
    if cos.shape[-1] * 2 != q.shape[-1]:
        raise ValueError(
            f"{what}: heads have {q.shape[-1]} elements, `cos` has {cos.shape[-1]} columns, "
            "expected half as many\nhint: tables that repeat their columns are cut to "
            "`cos[..., :D // 2]`"
        )
    sizes: tuple[int, ...] = (q.shape[2], cos.shape[-1])
    if cos.ndim == 3:
        sizes = (1 if cos.shape[0] == 1 else q.shape[0], *sizes)
    check_operands(
        what, ("k", "cos", "sin"), q=(q, None), k=(k, (q.shape[0], *k.shape[1:2], *q.shape[2:])),
        cos=(cos, sizes), sin=(sin, sizes),
    )  # fmt: skip


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Returns x [B, H, S, D] rotated by the angle of each position; see `rope`."""
    _check_rope("rotary", x, x, cos, sin)
    turned: Tensor = rotate(x, x[:, :0], cos, sin, interleaved, False)[0]
    return turned


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns q [B, H, S, D] and k [B, G, S, D] rotated by the angle of each position.

    Args:
        q: Queries, of any strides; a view of [B, S, H, D] is read in place.
        k: Keys; G need not be H.
        cos: [S, D / 2], [1, S, D / 2] or [B, S, D / 2]. PyTorch computes its gradient.
        sin: As `cos`.
        interleaved: Pairs are neighbours instead of halves.

    Raises:
        TypeError: One holds no floats.
        ValueError: Sizes differ; the tables are not half as wide as the heads.
    """
    _check_rope("rope", q, k, cos, sin)
    turned_q, turned_k = rotate(q, k, cos, sin, interleaved, False)
    return turned_q, turned_k
