"""Gradients of attention with alpha-entmax weights, from the tiles that have weights.

With u = p^(2 - alpha), which is v^(1 / (alpha - 1) - 1) for p = v^(1 / (alpha - 1)), the gradient
of the scores is u (dp - sum(u dp) / sum(u)), dp = dout v^T (Peters et al. 2019). With
h = -p log p and w = u / sum(u), alpha's is the sum over keys of dp ((p - w) / (alpha - 1)^2 +
(h - w sum(h)) / (alpha - 1)) (Correia et al. 2019, proposition 1); heads have one each then.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention import (
    _reference_scores,
    adjacent,
    known_rows,
    mask_of,
)
from regraft.backends.triton.kernels.attention_tiles import (
    columns_tile,
    part_and_plane,
    positive_scale,
    rows_tile,
    visible_scores,
)
from regraft.backends.triton.kernels.entmax import (
    entmax_config,
    entmax_forward,
    own_slope,
    powers_above,
)
from regraft.backends.triton.kernels.operands import check_attention, in_autocast
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton


@triton.jit
def entmax_query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, alphas_ptr, bounds_ptr, used_ptr, dout_ptr, dq_ptr,
    delta_ptr, dalphas_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    H, group, S, T, D, E, tiles, offset, left, right, scale, slope, power,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_ALPHAS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    POWER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes dq of BLOCK_M rows of one head, and sum(u dp) / sum(u) of each row."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    slope = tl.cast(slope, tl.float32)
    power = tl.cast(power, tl.float32)
    parts = tl.cdiv(S, BLOCK_M)
    part, plane = part_and_plane(parts)
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    slope, power = own_slope(alphas_ptr, head, slope, power, HAS_ALPHAS)
    row = part * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    end = T
    if HAS_LENGTHS:
        end = min(T, tl.load(lengths_ptr + batch).to(tl.int32))
    k_base = k_ptr + batch * k_batch_stride + head // group * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head // group * v_head_stride
    mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    place = plane.to(tl.int64) * S + row
    is_row = row < S
    q = rows_tile(q_base, row, q_row_stride, d, S, D)
    dout = tl.load(
        dout_ptr + place[:, None] * E + e[None, :],
        mask=is_row[:, None] & (e < E)[None, :],
        other=0.0,
    )
    base = tl.load(bounds_ptr + 2 * place, mask=is_row, other=0.0)
    tau = tl.load(bounds_ptr + 2 * place + 1, mask=is_row, other=0.0)
    tile = (plane.to(tl.int64) * parts + part) * tiles
    weight = tl.zeros([BLOCK_M], tl.float32)
    dot = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    read = tl.zeros([BLOCK_M], tl.float32)
    entropy = tl.zeros([BLOCK_M], tl.float32)
    informed = tl.zeros([BLOCK_M], tl.float32)
    for number in range(tiles):
        if tl.load(used_ptr + tile + number) != 0:
            column = number * BLOCK_N + n
            k = columns_tile(k_base, column, k_row_stride, d, end, D)
            v = columns_tile(v_base, column, v_row_stride, e, end, E)
            s, _ = visible_scores(
                q, k, row[:, None], column[None, :], S, end, offset, left, right, scale, 0.0,
                mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False, PRECISION,
            )  # fmt: skip
            p, u, _ = powers_above((s - base[:, None]) * slope, tau[:, None], power, POWER)
            dp = tl.dot(dout, v, input_precision=PRECISION)
            weight += tl.sum(u, axis=1)
            dot += tl.sum(u * dp, axis=1)
            if HAS_ALPHAS:
                h = -p * tl.log(tl.where(p > 0.0, p, 1.0))
                total += tl.sum(p, axis=1)
                read += tl.sum(p * dp, axis=1)
                entropy += tl.sum(h, axis=1)
                informed += tl.sum(h * dp, axis=1)
    delta = dot / tl.where(weight == 0.0, 1.0, weight)
    if HAS_ALPHAS:
        found = (read - total * delta) / (slope * slope) + (informed - entropy * delta) / slope
        tl.store(dalphas_ptr + place, found, mask=is_row)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for number in range(tiles):
        if tl.load(used_ptr + tile + number) != 0:
            column = number * BLOCK_N + n
            k = columns_tile(k_base, column, k_row_stride, d, end, D)
            v = columns_tile(v_base, column, v_row_stride, e, end, E)
            s, _ = visible_scores(
                q, k, row[:, None], column[None, :], S, end, offset, left, right, scale, 0.0,
                mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False, PRECISION,
            )  # fmt: skip
            _, u, _ = powers_above((s - base[:, None]) * slope, tau[:, None], power, POWER)
            dp = tl.dot(dout, v, input_precision=PRECISION)
            ds = u * (dp - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), tl.trans(k), dq, input_precision=PRECISION)
    out = dq_ptr + place[:, None] * D + d[None, :]
    mask = is_row[:, None] & (d < D)[None, :]
    tl.store(out, (dq * scale).to(dq_ptr.dtype.element_ty), mask=mask)
    tl.store(delta_ptr + place, delta, mask=is_row)


@triton.jit
def entmax_key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, alphas_ptr, bounds_ptr, used_ptr, dout_ptr,
    delta_ptr, dk_ptr, dv_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    key_heads, group, S, T, D, E, row_tiles, offset, left, right, scale, slope, power,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_ALPHAS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    POWER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv of BLOCK_N keys, summed over the query heads that share them."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    slope = tl.cast(slope, tl.float32)
    power = tl.cast(power, tl.float32)
    parts = tl.cdiv(T, BLOCK_N)
    part, plane = part_and_plane(parts)
    batch = (plane // key_heads).to(tl.int64)
    key_head = (plane % key_heads).to(tl.int64)
    column = part * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    end = T
    if HAS_LENGTHS:
        end = min(T, tl.load(lengths_ptr + batch).to(tl.int32))
    is_column = column < T
    k_base = k_ptr + batch * k_batch_stride + key_head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + key_head * v_head_stride
    k = rows_tile(k_base, column, k_row_stride, d, end, D)
    v = rows_tile(v_base, column, v_row_stride, e, end, E)
    # [D, N] and [E, N]: accumulators of wgmma that are transposed before another product gave wrong
    # gradients (fla #826)
    dk = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    dv = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    for number in range(group * row_tiles):
        head = key_head * group + number // row_tiles
        own, inverse = own_slope(alphas_ptr, head, slope, power, HAS_ALPHAS)
        rows_before = batch * key_heads * group + head  # heads before this one
        tile = (rows_before * row_tiles + number % row_tiles) * parts
        if tl.load(used_ptr + tile + part) != 0:
            row = (number % row_tiles) * BLOCK_M + m
            is_row = row < S
            place = rows_before * S + row
            q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
            q = rows_tile(q_base, row, q_row_stride, d, S, D)
            dout = tl.load(
                dout_ptr + place[:, None] * E + e[None, :],
                mask=is_row[:, None] & (e < E)[None, :],
                other=0.0,
            )
            base = tl.load(bounds_ptr + 2 * place, mask=is_row, other=0.0)
            tau = tl.load(bounds_ptr + 2 * place + 1, mask=is_row, other=0.0)
            delta = tl.load(delta_ptr + place, mask=is_row, other=0.0)
            mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
            # the product that tau solves: another order of its sums moves weights
            s, _ = visible_scores(
                q, tl.trans(k), row[:, None], column[None, :], S, end, offset, left, right, scale,
                0.0, mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False,
                PRECISION,
            )  # fmt: skip
            p, u, _ = powers_above((s - base[:, None]) * own, tau[:, None], inverse, POWER)
            dv = tl.dot(tl.trans(dout), p.to(dout.dtype), dv, input_precision=PRECISION)
            dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
            ds = u * (dp - delta[:, None])
            dk = tl.dot(tl.trans(q), ds.to(q.dtype), dk, input_precision=PRECISION)
    out = plane.to(tl.int64) * T + column
    tl.store(
        dk_ptr + out[None, :] * D + d[:, None],
        (dk * scale).to(dk_ptr.dtype.element_ty),
        mask=is_column[None, :] & (d < D)[:, None],
    )
    tl.store(
        dv_ptr + out[None, :] * E + e[:, None],
        dv.to(dv_ptr.dtype.element_ty),
        mask=is_column[None, :] & (e < E)[:, None],
    )


def reference_entmax_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None,
    alphas: Tensor | None, bounds: Tensor, used: Tensor, alpha: float, scale: float, offset: int,
    left: int, right: int, precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns dq, dk, dv, and what each row adds to the gradient by its head's alpha."""
    scores, shown = _reference_scores(q, k, mask, lengths, None, scale, 0.0, offset, left, right)
    group = q.shape[1] // k.shape[1]
    given = torch.as_tensor(alpha) if alphas is None else alphas.reshape(-1, 1, 1)
    slope = given.to(bounds) - 1
    z = (scores.to(bounds.dtype).masked_fill(~shown, -torch.inf) - bounds[..., :1]) * slope
    above = (z - bounds[..., 1:]).clamp(min=0)
    p = above ** (1 / slope)
    u = torch.where(above > 0, above ** (1 / slope - 1), 0)
    keys, values = (
        known_rows(x, lengths).repeat_interleave(group, 1).to(bounds.dtype) for x in (k, v)
    )
    grad = dout.to(bounds.dtype)
    dp = grad @ values.transpose(-1, -2)
    weight = u.sum(-1, keepdim=True)
    delta = (u * dp).sum(-1, keepdim=True) / torch.where(weight == 0, 1, weight)
    ds = u * (dp - delta)
    dq = (ds @ keys * scale).to(q.dtype)
    dk = (ds.transpose(-1, -2) @ q.to(bounds.dtype) * scale).unflatten(1, (-1, group)).sum(2)
    dv = (p.transpose(-1, -2) @ grad).unflatten(1, (-1, group)).sum(2)
    h = -torch.xlogy(p, p)
    by_alpha = (p * dp).sum(-1, keepdim=True) - p.sum(-1, keepdim=True) * delta
    by_entropy = (h * dp).sum(-1, keepdim=True) - h.sum(-1, keepdim=True) * delta
    found = (by_alpha / slope.square() + by_entropy / slope).squeeze(-1)
    dalphas = bounds.new_empty(0) if alphas is None else found
    return dq, dk.to(k.dtype), dv.to(v.dtype), dalphas


def _allocate_entmax_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None,
    alphas: Tensor | None, bounds: Tensor, *others: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv, bounds.new_empty(0 if alphas is None else q.shape[:3])


def _launch_entmax_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None,
    alphas: Tensor | None, bounds: Tensor, used: Tensor, alpha: float, scale: float, offset: int,
    left: int, right: int, precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, dalphas = _allocate_entmax_backward(dout, q, k, v, mask, lengths, alphas, bounds)
    if dout.numel() == 0 or k.shape[2] == 0:
        return dq.zero_(), dk.zero_(), dv.zero_(), dalphas.zero_()
    q, k, v = adjacent(q, k, v)
    B, H, S, D = q.shape
    T, E = k.shape[2], v.shape[3]
    delta = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    read, kind, strides = mask_of(mask, q, k)
    config = entmax_config(q, v)
    power = 1.0 / (alpha - 1.0)
    settings = {
        "MASK": kind,
        "HAS_LENGTHS": lengths is not None,
        "HAS_ALPHAS": alphas is not None,
        "LEFT": left >= 0,
        "RIGHT": right >= 0,
        "POWER": int(power) if alphas is None and power in (1.0, 2.0) else 0,
        "PRECISION": precision,
        "BLOCK_M": config["m"],
        "BLOCK_N": config["n"],
        "BLOCK_D": block_of(D),
        "BLOCK_E": block_of(E),
        "num_stages": config["stages"],
    }
    dout = dout.contiguous()
    known = q if lengths is None else lengths
    own = q if alphas is None else alphas.contiguous()
    wrap_triton(entmax_query_gradient_kernel)[(used.shape[2] * B * H,)](
        q, k, v, read, known, own, bounds, used, dout, dq, delta, dalphas,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides,
        H, H // k.shape[1], S, T, D, E, used.shape[3], offset, left, right, scale, alpha - 1.0,
        power, num_warps=config["warps"], **settings,
    )  # fmt: skip
    wrap_triton(entmax_key_gradient_kernel)[(used.shape[3] * B * k.shape[1],)](
        q, k, v, read, known, own, bounds, used, dout, delta, dk, dv,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides,
        k.shape[1], H // k.shape[1], S, T, D, E, used.shape[2], offset, left, right, scale,
        alpha - 1.0, power, num_warps=config["key_warps"], **settings,
    )  # fmt: skip
    return dq, dk, dv, dalphas


entmax_backward = operator(
    "entmax_attention_backward",
    _launch_entmax_backward,
    allocate=_allocate_entmax_backward,
    reference=reference_entmax_backward,
    kernel=entmax_query_gradient_kernel,
)


def _keep_entmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, alpha, scale, offset, left, right, precision = inputs
    _, bounds, used = output
    ctx.mark_non_differentiable(bounds, used)
    ctx.save_for_backward(*tensors, bounds, used)
    ctx.settings = (alpha, scale, offset, left, right, precision)


def _differentiate_entmax(
    ctx: Any, dout: Tensor, dbounds: None, dused: None
) -> tuple[Tensor | None, ...]:
    q, k, v, mask, lengths, alphas, bounds, used = ctx.saved_tensors
    dq, dk, dv, dalphas = entmax_backward(
        dout, q, k, v, mask, lengths, alphas, bounds, used, *ctx.settings
    )
    by_head = None if alphas is None else dalphas.sum((0, 2)).to(alphas.dtype)
    return dq, dk, dv, None, None, by_head, *(None,) * len(ctx.settings)


entmax_forward.register_autograd(_differentiate_entmax, setup_context=_keep_entmax)


def entmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float | Tensor = 1.5,
    scale: float | None = None,
    offset: int = 0,
    window: tuple[int, int] = (-1, -1),
    lengths: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Returns attention of q [B, H, S, D] to k and v with alpha-entmax weights, as [B, H, S, E].

    Args:
        q: Queries, of any strides.
        k: Keys [B, G, T, D]; G divides H.
        v: Values [B, G, T, E].
        mask: bool (False hides) or float (added), of [B, H, S, T]; has no gradient.
        alpha: Above 1: 1.5 and 2 (sparsemax) take the fewest operations. Or one per head, [H], each
            above 1, with a gradient.
        scale: Factor of the scores; default: D ** -0.5.
        offset: Key position of the first query.
        window: Keys back and ahead of its position that a query sees; -1: all. (-1, 0): causal.
        lengths: Number of keys per batch row, [B].
        precision: Of products of f32.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Sizes differ, or alpha is not above 1.
    """
    q, k, v = in_autocast(q, k, v)
    check_attention("entmax_attention", q, k, v, mask, lengths, None, window, 0.0, precision)
    alphas = alpha if isinstance(alpha, Tensor) else None
    if alphas is not None and alphas.shape != q.shape[1:2]:
        raise ValueError(
            f"entmax_attention: alpha {list(alphas.shape)} for {q.shape[1]} heads; expected [H]"
        )
    if not isinstance(alpha, Tensor) and alpha <= 1:
        raise ValueError(f"entmax_attention: alpha is {alpha}, expected above 1 (`attention`)")
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    lengths = None if lengths is None else lengths.contiguous()
    q, scale = positive_scale(q, q.shape[3] ** -0.5 if scale is None else scale)
    out: Tensor = entmax_forward(
        q, k, v, mask, lengths, alphas, alpha if alphas is None else 1.5, scale, offset, *window,
        precision,
    )[0]  # fmt: skip
    return out
