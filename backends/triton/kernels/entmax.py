"""Attention whose weights are alpha-entmax of the scores, tiles without weight left out.

p = [(alpha - 1) (score - largest) - tau]_+ ^ (1 / (alpha - 1)), tau such that a row's weights sum
to 1 (Peters et al. 2019). A first kernel finds the largest scores, and which tiles have one above
the lower bound of tau, largest - 1 / (alpha - 1): weights of all others are zero. A second one
finds tau by Halley's steps within a bracket, and the result, from those tiles alone; it notes the
tiles whose scores exceed tau, which gradients need (Goncalves et al. 2025, AdaSplash). Heads may
have an alpha each, which is learned (Correia et al. 2019).
"""

from __future__ import annotations

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
    key_range,
    part_and_plane,
    rows_tile,
    visible_scores,
)
from regraft.backends.triton.kernels.configs import Config, config_for
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton

ENTMAX_STEPS = 8
"""Halley's steps; 4 to 6 reach the precision of f32."""
_BISECTIONS = 60


@triton.jit
def powers_above(z, tau, power, POWER: tl.constexpr):
    """Returns v^power, v^(power - 1) and v^(power - 2) of v = z - tau, zero where v is not above 0.

    POWER is 1 or 2 where `power` is (alpha 2 and 1.5), else 0.
    """
    v = tl.maximum(z - tau, 0.0)
    is_above = v > 0.0
    if POWER == 2:
        return v * v, v, tl.where(is_above, 1.0, 0.0)
    elif POWER == 1:
        return v, tl.where(is_above, 1.0, 0.0), tl.zeros_like(v)
    else:
        digits = tl.log2(tl.where(is_above, v, 1.0))
        p = tl.where(is_above, tl.exp2(power * digits), 0.0)
        first = tl.where(is_above, tl.exp2((power - 1.0) * digits), 0.0)
        second = tl.where(is_above, tl.exp2((power - 2.0) * digits), 0.0)
        return p, first, second


@triton.jit
def own_slope(alphas_ptr, head, slope, power, HAS_ALPHAS: tl.constexpr):
    """Returns alpha - 1 and its inverse, of one head where heads have an alpha each."""
    if HAS_ALPHAS:
        slope = tl.load(alphas_ptr + head).to(tl.float32) - 1.0
        power = 1.0 / slope
    return slope, power


@triton.jit
def halley_step(tau, low, high, p, first, second, power):
    """Returns the next tau and its bracket, from the sums of `powers_above` at tau."""
    f = p - 1.0
    slope = -power * first
    bend = power * (power - 1.0) * second
    low = tl.where(f >= 0.0, tau, low)
    high = tl.where(f >= 0.0, high, tau)
    step = tau - 2.0 * f * slope / (2.0 * slope * slope - f * bend)
    # f is convex: from the lower end no step goes too far. Where one key has all the weight, tau is
    # that end, and rounding takes steps past it
    step = tl.where(step < low, low, step)
    return tl.where(step <= high, step, 0.5 * (low + high)), low, high  # NaN is not below


@triton.jit
def entmax_bounds_kernel(
    q_ptr, k_ptr, mask_ptr, lengths_ptr, alphas_ptr, bounds_ptr, near_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    H, group, S, T, D, tiles, offset, left, right, scale, slope,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_ALPHAS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the largest scores of BLOCK_M rows, and which tiles may have a weight."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    slope = tl.cast(slope, tl.float32)
    parts = tl.cdiv(S, BLOCK_M)
    part, plane = part_and_plane(parts)
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    slope, _inverse = own_slope(alphas_ptr, head, slope, slope, HAS_ALPHAS)
    first_row = part * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    length = T
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + batch).to(tl.int32)
    start, end = key_range(first_row, BLOCK_M, T, length, offset, left, right, LEFT, RIGHT, BLOCK_N)
    k_base = k_ptr + batch * k_batch_stride + head // group * k_head_stride
    mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    q = rows_tile(q_base, row, q_row_stride, d, S, D)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for first in range(start, end, BLOCK_N):
        column = first + n
        k = columns_tile(k_base, column, k_row_stride, d, T, D)
        s, _ = visible_scores(
            q, k, row[:, None], column[None, :], S, end, offset, left, right, scale, 0.0,
            mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False, PRECISION,
        )  # fmt: skip
        largest = tl.maximum(largest, tl.max(s, axis=1))
    base = tl.where(largest == float("-inf"), 0.0, largest)
    place = plane.to(tl.int64) * S + row
    tl.store(bounds_ptr + 2 * place, base, mask=row < S)
    near = near_ptr + (plane.to(tl.int64) * parts + part) * tiles
    for first in range(start, end, BLOCK_N):
        column = first + n
        k = columns_tile(k_base, column, k_row_stride, d, T, D)
        s, _ = visible_scores(
            q, k, row[:, None], column[None, :], S, end, offset, left, right, scale, 0.0,
            mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False, PRECISION,
        )  # fmt: skip
        z = tl.max(tl.max((s - base[:, None]) * slope, axis=1), axis=0)
        tl.store(near + first // BLOCK_N, (z > -1.0).to(tl.int8))


@triton.jit
def entmax_attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, alphas_ptr, bounds_ptr, near_ptr, used_ptr, out_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    H, group, S, T, D, E, tiles, offset, left, right, scale, slope, power, highest,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_ALPHAS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    POWER: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_M rows of one head, their tau, and which tiles have weights."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    slope = tl.cast(slope, tl.float32)
    power = tl.cast(power, tl.float32)
    highest = tl.cast(highest, tl.float32)
    parts = tl.cdiv(S, BLOCK_M)
    part, plane = part_and_plane(parts)
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    slope, power = own_slope(alphas_ptr, head, slope, power, HAS_ALPHAS)
    if HAS_ALPHAS:
        highest = -tl.exp2(-slope * tl.log2(tl.cast(T, tl.float32)))
    first_row = part * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    length = T
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + batch).to(tl.int32)
    start, end = key_range(first_row, BLOCK_M, T, length, offset, left, right, LEFT, RIGHT, BLOCK_N)
    k_base = k_ptr + batch * k_batch_stride + head // group * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head // group * v_head_stride
    mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    q = rows_tile(q_base, row, q_row_stride, d, S, D)
    place = plane.to(tl.int64) * S + row
    base = tl.load(bounds_ptr + 2 * place, mask=row < S, other=0.0)
    tile = (plane.to(tl.int64) * parts + part) * tiles
    low = tl.full([BLOCK_M], -1.0, tl.float32)
    high = tl.zeros([BLOCK_M], tl.float32) + highest
    tau = 0.5 * (low + high)
    for step in range(STEPS):  # noqa: B007 - `_` is a variable of the loop within
        p_sum = tl.zeros([BLOCK_M], tl.float32)
        first_sum = tl.zeros([BLOCK_M], tl.float32)
        second_sum = tl.zeros([BLOCK_M], tl.float32)
        for first in range(start, end, BLOCK_N):
            if tl.load(near_ptr + tile + first // BLOCK_N) != 0:
                column = first + n
                k = columns_tile(k_base, column, k_row_stride, d, T, D)
                s, _ = visible_scores(
                    q, k, row[:, None], column[None, :], S, end, offset, left, right, scale, 0.0,
                    mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False,
                    PRECISION,
                )  # fmt: skip
                z = (s - base[:, None]) * slope
                p, falling, bending = powers_above(z, tau[:, None], power, POWER)
                p_sum += tl.sum(p, axis=1)
                first_sum += tl.sum(falling, axis=1)
                second_sum += tl.sum(bending, axis=1)
        tau, low, high = halley_step(tau, low, high, p_sum, first_sum, second_sum, power)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for first in range(start, end, BLOCK_N):
        if tl.load(near_ptr + tile + first // BLOCK_N) != 0:
            column = first + n
            k = columns_tile(k_base, column, k_row_stride, d, T, D)
            v = rows_tile(v_base, column, v_row_stride, e, end, E)
            s, _ = visible_scores(
                q, k, row[:, None], column[None, :], S, end, offset, left, right, scale, 0.0,
                mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT, False, PRECISION,
            )  # fmt: skip
            p, _, _ = powers_above((s - base[:, None]) * slope, tau[:, None], power, POWER)
            total += tl.sum(p, axis=1)
            sums = tl.dot(p.to(v.dtype), v, sums, input_precision=PRECISION)
            most = tl.max(tl.max(p, axis=1), axis=0)
            tl.store(used_ptr + tile + first // BLOCK_N, (most > 0.0).to(tl.int8))
    # what the last step left of the equation
    sums = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    out = out_ptr + place[:, None] * E + e[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=(row < S)[:, None] & (e < E)[None, :])
    tl.store(bounds_ptr + 2 * place + 1, tau, mask=row < S)


def reference_entmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    alphas: Tensor | None,
    alpha: float,
    scale: float,
    offset: int,
    left: int,
    right: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns out [B, H, S, E]; largest score and tau [B, H, S, 2]; tiles with weights."""
    if k.shape[2] == 0:
        out, bounds, used = _allocate_entmax(q, k, v)
        return out.zero_(), bounds.zero_(), used.zero_()
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores, shown = _reference_scores(q, k, mask, lengths, None, scale, 0.0, offset, left, right)
    given = torch.as_tensor(alpha, device=q.device) if alphas is None else alphas.reshape(-1, 1, 1)
    slope = given.to(wide) - 1
    scores = scores.to(wide).masked_fill(~shown, -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0, largest)
    z = (scores - largest) * slope
    low = torch.full_like(largest, -1.0)
    high = -(float(k.shape[2]) ** -slope).expand(largest.shape)
    for _ in range(_BISECTIONS):
        tau = (low + high) / 2
        is_low = ((z - tau).clamp(min=0) ** (1 / slope)).sum(-1, keepdim=True) >= 1
        low, high = torch.where(is_low, tau, low), torch.where(is_low, high, tau)
    weights = (z - low).clamp(min=0) ** (1 / slope)
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total == 0, 1, total)
    values = known_rows(v, lengths).repeat_interleave(q.shape[1] // v.shape[1], 1)
    used = _tiles_with_weights(weights, entmax_config(q, v))
    return weights.to(q.dtype) @ values, torch.cat((largest, low), -1), used


def _tiles_with_weights(weights: Tensor, config: Config) -> Tensor:
    """Returns i8[B, H, tiles of rows, tiles of keys]: 1 where a weight is above 0."""
    S, T = weights.shape[2:]
    m, n = config["m"], config["n"]
    padded = torch.nn.functional.pad(weights, (0, -T % n, 0, -S % m))
    shape = (*weights.shape[:2], padded.shape[2] // m, m, padded.shape[3] // n, n)
    return (padded.reshape(shape).amax((3, 5)) > 0).to(torch.int8)


def entmax_config(q: Tensor, v: Tensor) -> Config:
    """Returns the configuration, whose tiles are those of the gradients too."""
    if q.dtype == torch.float64:  # a reference
        return {"m": 16, "n": 16}
    return config_for("entmax", q, max(q.shape[3], v.shape[3]))


def _allocate_entmax(
    q: Tensor, k: Tensor, v: Tensor, *others: object
) -> tuple[Tensor, Tensor, Tensor]:
    config = entmax_config(q, v)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    tiles = (*q.shape[:2], -(-q.shape[2] // config["m"]), -(-k.shape[2] // config["n"]))
    return (
        torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device),
        torch.empty((*q.shape[:3], 2), dtype=wide, device=q.device),
        torch.empty(tiles, dtype=torch.int8, device=q.device),
    )


def _launch_entmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    alphas: Tensor | None,
    alpha: float,
    scale: float,
    offset: int,
    left: int,
    right: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    out, bounds, used = _allocate_entmax(q, k, v)
    used.zero_()
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_(), bounds.zero_(), used
    q, k, v = adjacent(q, k, v)
    near = torch.zeros_like(used)
    B, H, S, D = q.shape
    T, E = k.shape[2], v.shape[3]
    read, kind, strides = mask_of(mask, q, k)
    config = entmax_config(q, v)
    grid = (triton.cdiv(S, config["m"]) * B * H,)
    slope = alpha - 1.0
    power = 1.0 / slope
    own = q if alphas is None else alphas.contiguous()
    wrap_triton(entmax_bounds_kernel)[grid](
        q, k, read, q if lengths is None else lengths, own, bounds, near,
        *q.stride()[:3], *k.stride()[:3], *strides,
        H, H // k.shape[1], S, T, D, used.shape[3], offset, left, right, scale, slope,
        MASK=kind,
        HAS_LENGTHS=lengths is not None,
        HAS_ALPHAS=alphas is not None,
        LEFT=left >= 0,
        RIGHT=right >= 0,
        PRECISION=precision,
        BLOCK_M=config["m"],
        BLOCK_N=config["n"],
        BLOCK_D=block_of(D),
        num_warps=config["warps"],
        num_stages=config["stages"],
    )  # fmt: skip
    wrap_triton(entmax_attention_kernel)[grid](
        q, k, v, read, q if lengths is None else lengths, own, bounds, near, used, out,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides,
        H, H // k.shape[1], S, T, D, E, used.shape[3], offset, left, right, scale, slope, power,
        -(float(T) ** -slope),
        MASK=kind,
        HAS_LENGTHS=lengths is not None,
        HAS_ALPHAS=alphas is not None,
        LEFT=left >= 0,
        RIGHT=right >= 0,
        POWER=int(power) if alphas is None and power in (1.0, 2.0) else 0,
        STEPS=ENTMAX_STEPS,
        PRECISION=precision,
        BLOCK_M=config["m"],
        BLOCK_N=config["n"],
        BLOCK_D=block_of(D),
        BLOCK_E=block_of(E),
        num_warps=config["warps"],
        num_stages=config["stages"],
    )  # fmt: skip
    return out, bounds, used


entmax_forward = operator(
    "entmax_attention",
    _launch_entmax,
    allocate=_allocate_entmax,
    reference=reference_entmax_attention,
    kernel=entmax_attention_kernel,
)
