"""Causal linear attention with a scalar decay, in chunks: one kernel, forward and backward.

out_i = scale * sum over j <= i of exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j, the recurrence
S_i = exp(g_i) S_{i-1} + k_i^T v_i read by q_i. Within a chunk the products are formed as in
attention, between chunks the state [D, E] is carried in registers, in f32: it is never in memory.
Source: Katharopoulos et al. 2020 (linear attention), Sun et al. 2023 (RetNet: chunks), Qin et al.
2024 (Lightning Attention-2: the order of the loops). The gradients are the same sums with other
operands: dq of (dout, v, k), dk of (v, dout, q) and dv of (k, q, dout), the last two from the end
to the start. One token, a step of decoding, is a kernel of its own that goes over the state once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from regraft.backends.triton.kernels.attention import adjacent
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operators import block_of, operator


@triton.jit
def decay_parts(g):
    """Returns factors' logarithms in two parts, whose sums over a chunk lose nothing.

    The first is a multiple of 2^-10, so that its sums are exact, and the second is small. Sums of
    g itself grow, and differences of theirs would have the last digits of the larger one. Below
    -128 a factor is 0 in f32: so is that of -inf, which forgets all before.
    """
    g = tl.maximum(g.to(tl.float32), -128.0)
    coarse = tl.floor(g * 1024.0) * 0.0009765625
    return coarse, g - coarse


@triton.jit
def linear_attention_kernel(
    q_ptr, k_ptr, v_ptr, decay_ptr, state_ptr, out_ptr, final_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    H, T, D, E, scale,
    HAS_DECAY: tl.constexpr,
    HAS_STATE: tl.constexpr,
    REVERSE: tl.constexpr,
    STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_E columns of one head, chunk after chunk, and the state after the last."""
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = (tl.program_id(1) % H).to(tl.int64)
    place = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    c = tl.arange(0, CHUNK)
    state_place = place * D * E + d[:, None] * E + e[None, :]
    state_mask = (d < D)[:, None] & (e < E)[None, :]
    state = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    if HAS_STATE:
        state += tl.load(state_ptr + state_place, mask=state_mask, other=0.0).to(tl.float32)
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head * v_head_stride
    for first in range(0, T, CHUNK):
        step = first + c
        inside = step < T
        row = step
        if REVERSE:
            row = T - 1 - step
        row = tl.where(inside, row, 0).to(tl.int64)
        q = tl.load(
            q_base + row[:, None] * q_row_stride + d[None, :],
            mask=inside[:, None] & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        k = tl.load(
            k_base + row[None, :] * k_row_stride + d[:, None],
            mask=inside[None, :] & (d < D)[:, None], other=0.0,
        )  # fmt: skip
        v = tl.load(
            v_base + row[:, None] * v_row_stride + e[None, :],
            mask=inside[:, None] & (e < E)[None, :], other=0.0,
        )  # fmt: skip
        products = tl.dot(q, k, input_precision=PRECISION)
        is_before = c[None, :] <= c[:, None]
        if STRICT:
            is_before = c[None, :] < c[:, None]
        if HAS_DECAY:
            if REVERSE:
                # from i back to j: g of the rows after j, up to i
                known = inside & (row + 1 < T)
                g = tl.load(decay_ptr + place * T + row + 1, mask=known, other=0.0)
            else:
                g = tl.load(decay_ptr + place * T + row, mask=inside, other=0.0)
            coarse, fine = decay_parts(g)
            a, b = tl.cumsum(coarse, axis=0), tl.cumsum(fine, axis=0)
            all_a, all_b = tl.sum(coarse, axis=0), tl.sum(fine, axis=0)
            between = (a[:, None] - a[None, :]) + (b[:, None] - b[None, :])
            # hidden pairs would overflow: their exponents are positive
            products = products * tl.exp(tl.where(is_before, between, float("-inf")))
            read = q.to(tl.float32) * tl.exp(a + b)[:, None]
            kept = k.to(tl.float32) * tl.exp((all_a - a) + (all_b - b))[None, :]
            shrunk = state * tl.exp(all_a + all_b)
        else:
            products = tl.where(is_before, products, 0.0)
            read = q.to(tl.float32)
            kept = k.to(tl.float32)
            shrunk = state
        out = tl.dot(products.to(v.dtype), v, input_precision=PRECISION)
        out = tl.dot(read, state, out, input_precision=STATE_PRECISION) * scale
        state = shrunk + tl.dot(kept.to(v.dtype), v, input_precision=PRECISION)
        out_place = out_ptr + (place * T + row)[:, None] * E + e[None, :]
        mask = inside[:, None] & (e < E)[None, :]
        tl.store(out_place, out.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(final_ptr + state_place, state, mask=state_mask)


@triton.jit
def linear_attention_step_kernel(
    q_ptr, k_ptr, v_ptr, decay_ptr, state_ptr, out_ptr, final_ptr,
    q_batch_stride, q_head_stride,
    k_batch_stride, k_head_stride,
    v_batch_stride, v_head_stride,
    H, D, E, scale,
    HAS_DECAY: tl.constexpr,
    HAS_STATE: tl.constexpr,
    STRICT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_E columns of the state after one token of a head, and what the token reads."""
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = (tl.program_id(1) % H).to(tl.int64)
    place = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    q = tl.load(q_ptr + batch * q_batch_stride + head * q_head_stride + d, mask=d < D, other=0.0)
    k = tl.load(k_ptr + batch * k_batch_stride + head * k_head_stride + d, mask=d < D, other=0.0)
    v = tl.load(v_ptr + batch * v_batch_stride + head * v_head_stride + e, mask=e < E, other=0.0)
    state_place = place * D * E + d[:, None] * E + e[None, :]
    state_mask = (d < D)[:, None] & (e < E)[None, :]
    state = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    if HAS_STATE:
        state += tl.load(state_ptr + state_place, mask=state_mask, other=0.0).to(tl.float32)
    if HAS_DECAY:
        state = state * tl.exp(tl.load(decay_ptr + place).to(tl.float32))
    after = state + k.to(tl.float32)[:, None] * v.to(tl.float32)[None, :]
    seen = after
    if STRICT:
        seen = state
    out = tl.sum(q.to(tl.float32)[:, None] * seen, axis=0) * scale
    tl.store(out_ptr + place * E + e, out.to(out_ptr.dtype.element_ty), mask=e < E)
    tl.store(final_ptr + state_place, after, mask=state_mask)


def reference_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    scale: float,
    reverse: bool,
    strict: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Returns out [B, H, T, E] and the last state [B, H, D, E], by the sums over all pairs."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    T = q.shape[2]
    # sums in f64: differences of larger ones would have their last digits
    g = q.new_zeros(q.shape[:3]) if decay is None else decay.clamp(min=-128)
    g = g.to(torch.float64)
    if reverse:
        q, k, v = (x.flip(2) for x in (q, k, v))
        g = torch.cat((torch.zeros_like(g[..., :1]), g.flip(2)[..., :-1]), -1)[..., :T]
    a = g.cumsum(-1)
    between = a[..., :, None] - a[..., None, :]
    is_before = torch.ones(T, T, dtype=torch.bool, device=q.device).tril(-1 if strict else 0)
    share = torch.exp(between.masked_fill(~is_before, -torch.inf)).to(wide)
    out = ((q @ k.transpose(-1, -2)).to(wide) * share) @ v.to(wide)
    whole = g.sum(-1, keepdim=True)
    kept = k.to(wide) * torch.exp(whole - a)[..., None].to(wide)
    last = kept.transpose(-1, -2) @ v.to(wide)
    if state is not None:
        out = out + (q.to(wide) * torch.exp(a)[..., None].to(wide)) @ state.to(wide)
        last = last + state.to(wide) * torch.exp(whole)[..., None].to(wide)
    out = (out * scale).to(q.dtype)
    return out.flip(2) if reverse else out, last


def _allocate_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    scale: float,
    reverse: bool,
    strict: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, H, T, D = q.shape
    out = torch.empty((B, H, T, v.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty((B, H, D, v.shape[3]), dtype=wide, device=q.device)


def _launch_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    scale: float,
    reverse: bool,
    strict: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    E = v.shape[3]
    out = torch.empty((B, H, T, E), dtype=q.dtype, device=q.device)
    final = torch.empty((B, H, D, E), dtype=torch.float32, device=q.device)
    if final.numel() == 0:
        return out.zero_(), final
    q, k, v = adjacent(q, k, v)
    given = [q if x is None else x.contiguous() for x in (decay, state)]
    config = config_for("linear_attention", q, max(D, E))
    block = min(block_of(E), config["e"])
    if T == 1:
        wrap_triton(linear_attention_step_kernel)[(triton.cdiv(E, block), B * H)](
            q, k, v, *given, out, final,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], H, D, E, scale,
            # from the end to the start the one factor belongs to the token before
            HAS_DECAY=decay is not None and not reverse,
            HAS_STATE=state is not None,
            STRICT=strict,
            BLOCK_D=block_of(D),
            BLOCK_E=block,
            num_warps=4,
        )  # fmt: skip
        return out, final
    wrap_triton(linear_attention_kernel)[(triton.cdiv(E, block), B * H)](
        q, k, v, *given, out, final,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], H, T, D, E, scale,
        HAS_DECAY=decay is not None,
        HAS_STATE=state is not None,
        REVERSE=reverse,
        STRICT=strict,
        PRECISION=precision,
        STATE_PRECISION=precision if q.dtype == torch.float32 else "tf32",
        CHUNK=config["chunk"],
        BLOCK_D=block_of(D),
        BLOCK_E=block,
        num_warps=config["warps"],
        num_stages=config["stages"],
    )  # fmt: skip
    return out, final


linear_attention_forward = operator(
    "linear_attention",
    _launch_linear_attention,
    allocate=_allocate_linear_attention,
    reference=reference_linear_attention,
    kernel=linear_attention_kernel,
)
