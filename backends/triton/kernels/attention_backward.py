"""Gradients of attention: scores are computed again, tile by tile, from the rows' sums.

With p the softmax and w its weights: dv = w^T dout, dp = dout v^T times the slope of w,
ds = p * (dp - delta), delta = sum(dp * p) over a row, dq = scale * ds k, dk = scale * ds^T q (Dao
2023). For the softmax itself delta is sum(dout * out), no pass over the keys; clipped weights need
one. One kernel owns rows and writes delta and dq, the other owns keys and writes dk and dv, summed
over the queries' heads of a group in registers: nothing is added in an order that changes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention import (
    _reference_scores,
    adjacent,
    attention_options,
    known_rows,
    mask_of,
)
from regraft.backends.triton.kernels.attention_tiles import (
    columns_tile,
    key_range,
    offset_and_length,
    part_and_plane,
    rows_tile,
    softmax_tile,
    tile_scores,
)
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operators import operator, wrap_triton
from regraft.backends.triton.kernels.parted_dot import parted_dot


@triton.jit
def weight_slope(p, dw, low, high, CLIPPED: tl.constexpr):
    """Returns the weights, and the gradient by p of what has the gradient dw by them."""
    if CLIPPED:
        w = (high - low) * p + low
        dw = tl.where((w > 0.0) & (w < 1.0), dw * (high - low), 0.0)
        p = tl.minimum(tl.maximum(w, 0.0), 1.0)
    return p, dw


@triton.jit
def attention_query_gradient_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, offsets_ptr, out_ptr, sums_ptr,
    delta_ptr, dq_ptr, ds_ptr,
    dout_batch_stride, dout_head_stride, dout_row_stride,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    H, group, S, T, D, E, offset, left, right, scale, softcap, low, high,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CLIPPED: tl.constexpr,
    HAS_DS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes delta and dq of BLOCK_M rows of one head, and the gradient of a float mask."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    low = tl.cast(low, tl.float32)
    high = tl.cast(high, tl.float32)
    part, plane = part_and_plane(tl.cdiv(S, BLOCK_M), RIGHT)
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    first_row = part * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    offset, length = offset_and_length(
        offsets_ptr, lengths_ptr, batch, offset, T, HAS_OFFSETS, HAS_LENGTHS
    )
    start, end = key_range(first_row, BLOCK_M, T, length, offset, left, right, LEFT, RIGHT, BLOCK_N)
    k_base = k_ptr + batch * k_batch_stride + head // group * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head // group * v_head_stride
    mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
    rows64 = row[:, None].to(tl.int64)
    place = plane.to(tl.int64) * S + row
    q_mask = (row < S)[:, None] & (d < D)[None, :]
    e_mask = (row < S)[:, None] & (e < E)[None, :]
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    q = tl.load(q_base + rows64 * q_row_stride + d[None, :], mask=q_mask, other=0.0)
    dout_base = dout_ptr + batch * dout_batch_stride + head * dout_head_stride
    dout = tl.load(dout_base + rows64 * dout_row_stride + e[None, :], mask=e_mask, other=0.0)
    largest = tl.load(sums_ptr + 2 * place, mask=row < S, other=0.0)[:, None]
    log_total = tl.load(sums_ptr + 2 * place + 1, mask=row < S, other=0.0)[:, None]
    delta = tl.zeros([BLOCK_M], tl.float32)
    if CLIPPED:
        for first in range(start, end, BLOCK_N):
            column = first + n
            k = columns_tile(k_base, column, k_row_stride, d, end, D)
            v = columns_tile(v_base, column, v_row_stride, e, end, E)
            s, _ = tile_scores(
                q, k, row[:, None], column[None, :], first_row, first, S, end, offset, left, right,
                scale, softcap, mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT,
                SOFTCAP, PRECISION,
            )  # fmt: skip
            p = softmax_tile(s, scale, largest, log_total, q.dtype == tl.float32, MASK, SOFTCAP)
            dw = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            dw = parted_dot(dout, v, dw, PRECISION)
            _, dp = weight_slope(p, dw, low, high, CLIPPED)
            delta += tl.sum(dp * p, axis=1)
    else:
        out = tl.load(out_ptr + place[:, None] * E + e[None, :], mask=e_mask, other=0.0)
        delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), axis=1)
    tl.store(delta_ptr + place, delta, mask=row < S)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(start, end, BLOCK_N):
        column = first + n
        k = columns_tile(k_base, column, k_row_stride, d, end, D)
        v = columns_tile(v_base, column, v_row_stride, e, end, E)
        s, capped = tile_scores(
            q, k, row[:, None], column[None, :], first_row, first, S, end, offset, left, right,
            scale, softcap, mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT,
            SOFTCAP, PRECISION,
        )  # fmt: skip
        p = softmax_tile(s, scale, largest, log_total, q.dtype == tl.float32, MASK, SOFTCAP)
        dw = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        dw = parted_dot(dout, v, dw, PRECISION)
        _, dp = weight_slope(p, dw, low, high, CLIPPED)
        ds = p * (dp - delta[:, None])
        if HAS_DS:
            ds_place = ds_ptr + place[:, None] * T + column[None, :]
            tl.store(ds_place, ds, mask=(row < S)[:, None] & (column < end)[None, :])
        if SOFTCAP:
            ds = ds * (1.0 - capped * capped)
        dq = tl.dot(ds.to(k.dtype), tl.trans(k), dq, input_precision=PRECISION)
    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + place[:, None] * D + d[None, :], dq, mask=q_mask)


@triton.jit
def attention_key_gradient_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, offsets_ptr, sums_ptr, delta_ptr,
    dk_ptr, dv_ptr,
    dout_batch_stride, dout_head_stride, dout_row_stride,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    key_heads, group, S, T, D, E, offset, left, right, scale, softcap, low, high,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CLIPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv of BLOCK_N keys of one head of keys."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    low = tl.cast(low, tl.float32)
    high = tl.cast(high, tl.float32)
    part, plane = part_and_plane(tl.cdiv(T, BLOCK_N))
    batch = (plane // key_heads).to(tl.int64)
    key_head = (plane % key_heads).to(tl.int64)
    first_key = part * BLOCK_N
    column = first_key + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    m = tl.arange(0, BLOCK_M)
    offset, length = offset_and_length(
        offsets_ptr, lengths_ptr, batch, offset, T, HAS_OFFSETS, HAS_LENGTHS
    )
    end = min(T, length)
    # the rows that may see these keys
    start_row = 0
    end_row = S
    if RIGHT:
        start_row = max(0, first_key - offset - right) // BLOCK_M * BLOCK_M
    if LEFT:
        end_row = min(S, first_key + BLOCK_N - offset + left)
    k_base = k_ptr + batch * k_batch_stride + key_head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + key_head * v_head_stride
    # what lies behind the lengths may be NaN, which times 0 is NaN
    k = rows_tile(k_base, column, k_row_stride, d, end, D)
    v = rows_tile(v_base, column, v_row_stride, e, end, E)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    for member in range(group):
        head = key_head * group + member
        q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
        dout_base = dout_ptr + batch * dout_batch_stride + head * dout_head_stride
        mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
        first_place = (batch * key_heads * group + head) * S
        sums_base = sums_ptr + 2 * first_place
        delta_base = delta_ptr + first_place
        for first in range(start_row, end_row, BLOCK_M):
            row = first + m
            q = columns_tile(q_base, row, q_row_stride, d, S, D)
            dout = rows_tile(dout_base, row, dout_row_stride, e, S, E)
            largest = tl.load(sums_base + 2 * row, mask=row < S, other=0.0)[None, :]
            log_total = tl.load(sums_base + 2 * row + 1, mask=row < S, other=0.0)[None, :]
            delta = tl.load(delta_base + row, mask=row < S, other=0.0)[None, :]
            # [N, M]: a transposed accumulator of wgmma gave wrong gradients (fla #826)
            s, capped = tile_scores(
                k, q, row[None, :], column[:, None], first, first_key, S, end, offset, left, right,
                scale, softcap, mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT,
                SOFTCAP, PRECISION,
            )  # fmt: skip
            p = softmax_tile(s, scale, largest, log_total, q.dtype == tl.float32, MASK, SOFTCAP)
            dw = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
            w, dp = weight_slope(p, dw, low, high, CLIPPED)
            dv = tl.dot(w.to(dout.dtype), dout, dv, input_precision=PRECISION)
            ds = p * (dp - delta)
            if SOFTCAP:
                ds = ds * (1.0 - capped * capped)
            dk = tl.dot(ds.to(q.dtype), tl.trans(q), dk, input_precision=PRECISION)
    place = plane.to(tl.int64) * T + column
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    mask = (column < T)[:, None]
    tl.store(dk_ptr + place[:, None] * D + d[None, :], dk, mask=mask & (d < D)[None, :])
    dv = dv.to(dv_ptr.dtype.element_ty)
    tl.store(dv_ptr + place[:, None] * E + e[None, :], dv, mask=mask & (e < E)[None, :])


def reference_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    out: Tensor,
    sums: Tensor,
    scale: float,
    softcap: float,
    offset: int,
    left: int,
    right: int,
    low: float,
    high: float,
    precision: str,
    mask_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns dq, dk, dv, delta [B, H, S], and the gradient by the scores [B, H, S, T] if asked."""
    wide = sums.dtype
    B, H = q.shape[:2]
    G, T = k.shape[1], k.shape[2]
    scores, shown = _reference_scores(
        q, k, mask, lengths, offsets, scale, softcap, offset, left, right
    )
    weights = torch.exp(
        scores.to(wide).masked_fill(~shown, -torch.inf) - sums[..., :1] - sums[..., 1:]
    )
    keys, values = (known_rows(x, lengths).repeat_interleave(H // G, 1) for x in (k, v))
    dp = (dout @ values.transpose(-1, -2)).to(wide)
    shares = weights
    if (low, high) != (0.0, 1.0):
        shares = (high - low) * weights + low
        dp = torch.where((shares > 0) & (shares < 1), dp * (high - low), 0)
        shares = shares.clamp(0, 1)
    delta = (dp * weights).sum(-1)
    ds = weights * (dp - delta[..., None])
    inner = ds
    if softcap > 0:
        plain = (q * scale) @ keys.transpose(-1, -2)
        inner = ds * (1 - torch.tanh(plain / softcap).square().to(wide))
    inner = inner.to(q.dtype)
    dq = (inner @ keys) * scale
    dk = (inner.transpose(-1, -2) @ q * scale).reshape(B, G, H // G, T, -1).sum(2)
    dv = (shares.to(q.dtype).transpose(-1, -2) @ dout).reshape(B, G, H // G, T, -1).sum(2)
    return dq, dk, dv, delta, ds if mask_gradient else ds.new_empty(0)


def _allocate_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    out: Tensor,
    sums: Tensor,
    scale: float,
    softcap: float,
    offset: int,
    left: int,
    right: int,
    low: float,
    high: float,
    precision: str,
    mask_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    shape = (*q.shape[:3], k.shape[2]) if mask_gradient else (0,)
    ds = torch.empty(shape, dtype=sums.dtype, device=q.device)
    return dq, dk, dv, torch.empty(q.shape[:3], dtype=sums.dtype, device=q.device), ds


def _launch_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    out: Tensor,
    sums: Tensor,
    scale: float,
    softcap: float,
    offset: int,
    left: int,
    right: int,
    low: float,
    high: float,
    precision: str,
    mask_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    # hidden tiles are not visited
    shape = (*q.shape[:3], k.shape[2]) if mask_gradient else (0,)
    ds = torch.zeros(shape, dtype=torch.float32, device=q.device)
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_(), delta.zero_(), ds
    dout, q, k, v = adjacent(dout, q, k, v)
    out = out.contiguous()
    B, H, S, D = q.shape
    G, T, E = k.shape[1], k.shape[2], v.shape[3]
    read, kind, strides = mask_of(mask, q, k)
    if mask is None:
        config = config_for("attention_backward", q, max(D, E))
    else:
        config = config_for("attention_masked_backward", q, max(D, E))
    shared = attention_options(
        kind, lengths, offsets, left, right, softcap, low, high, precision, D, E, config
    )
    tensors = (
        dout, q, k, v, read, q if lengths is None else lengths, q if offsets is None else offsets,
    )  # fmt: skip
    every = (*dout.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides)
    numbers = (S, T, D, E, offset, left, right, scale, softcap, low, high)
    wrap_triton(attention_query_gradient_kernel)[(triton.cdiv(S, config["m"]) * B * H,)](
        *tensors, out, sums, delta, dq, ds, *every, H, H // G, *numbers,
        HAS_DS=mask_gradient, BLOCK_M=config["m"], BLOCK_N=config["n"], **shared,
    )  # fmt: skip
    wrap_triton(attention_key_gradient_kernel)[(triton.cdiv(T, config["key_n"]) * B * G,)](
        *tensors, sums, delta, dk, dv, *every, G, H // G, *numbers,
        BLOCK_M=config["key_m"], BLOCK_N=config["key_n"], **shared,
    )  # fmt: skip
    return dq, dk, dv, delta, ds


attention_backward = operator(
    "attention_backward",
    _launch_attention_backward,
    allocate=_allocate_attention_backward,
    reference=reference_attention_backward,
    kernel=attention_query_gradient_kernel,
)
