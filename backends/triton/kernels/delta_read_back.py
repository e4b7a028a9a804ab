"""Gradients by the states of a recurrence, chunk by chunk from the end to the start.

The mirror of `delta_scan_kernel`: a program has BLOCK_E columns of the gradient by the state in
registers, in f32. It writes that of the state after each chunk, and the gradient by what rows
would have written before they saw each other (T^-1 U; by U where there is no delta rule).
Source: see `delta_reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import part_and_plane
from regraft.backends.triton.kernels.delta_scan import (
    factors_since,
    factors_until,
    products_dtype,
    read_state,
    scan_options,
    state_columns,
)
from regraft.backends.triton.kernels.operators import wrap_triton


@triton.jit
def delta_read_back_kernel(
    q_ptr, k_ptr, dout_ptr, decay_ptr, beta_ptr, pairs_ptr, inverse_ptr, dfinal_ptr,
    made_ptr, after_ptr, dstate_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    dout_batch_stride, dout_head_stride, dout_row_stride,
    H, T, D, E, scale,
    DECAY: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PARTED: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_E columns of the gradients of a head's rows and states."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    part, plane = part_and_plane(tl.cdiv(E, BLOCK_E))
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    place = plane.to(tl.int64)
    num_chunks = tl.cdiv(T, CHUNK)
    c, d = tl.arange(0, CHUNK), tl.arange(0, BLOCK_D)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    state, state_at, state_mask = state_columns(
        dfinal_ptr, place, d, e, D, E, HAS_FINAL, BLOCK_D, BLOCK_E
    )
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    dout_base = dout_ptr + batch * dout_batch_stride + head * dout_head_stride
    decay_base = decay_ptr + place * T * (D if DECAY == "channel" else 1)
    for past in range(0, num_chunks):
        idx = num_chunks - 1 - past
        first = idx * CHUNK
        row = (first + c).to(tl.int64)[:, None]
        inside = first + c < T
        mask = inside[:, None] & (d < D)[None, :]
        chunk = place * num_chunks + idx
        tile = chunk * CHUNK * CHUNK + c[:, None] * CHUNK + c[None, :]
        k = tl.load(k_base + row * k_row_stride + d[None, :], mask=mask, other=0.0)
        dout_mask = inside[:, None] & (e < E)[None, :]
        dout_at = dout_base + row * dout_row_stride + e[None, :]
        dout = tl.load(dout_at, mask=dout_mask, other=0.0)
        kind = dout.dtype
        since, whole = factors_since(decay_base, first, T, D, DECAY, CHUNK, BLOCK_D)
        until = factors_until(decay_base, first, T, D, DECAY, CHUNK, BLOCK_D)
        after = after_ptr + chunk * D * E + state_at
        tl.store(after, state.to(after_ptr.dtype.element_ty), mask=state_mask)
        pairs = tl.load(pairs_ptr + tile)
        # a factor of a whole row need not touch the row
        held, seen, given = k, k, (dout.to(tl.float32) * scale).to(kind)
        if DECAY == "channel":
            held = (k.to(tl.float32) * until).to(kind)
            seen = (k.to(tl.float32) * since).to(kind)
        made = tl.zeros([CHUNK, BLOCK_E], tl.float32)
        made = read_state(held, state, made, PARTED, STATE_PRECISION)
        if DECAY == "token":
            made *= until
        made = tl.dot(tl.trans(pairs), given, made, input_precision=PRECISION)
        if DECAY == "token":
            given = (dout.to(tl.float32) * scale * since).to(kind)
        q = tl.load(q_base + row * q_row_stride + d[None, :], mask=mask, other=0.0)
        if DECAY == "channel":
            q = (q.to(tl.float32) * since).to(kind)
        state = tl.dot(tl.trans(q), given, state * whole, input_precision=PRECISION)
        if HAS_BETA:
            beta = tl.load(beta_ptr + place * T + first + c, mask=inside, other=0.0)
            inverse = tl.load(inverse_ptr + tile)
            made = tl.dot(tl.trans(inverse), made.to(kind), input_precision=PRECISION)
            rated = made * -beta.to(tl.float32)[:, None]
            if DECAY == "token":
                rated *= since
            state = tl.dot(tl.trans(seen), rated.to(kind), state, input_precision=PRECISION)
        line = (chunk * CHUNK + c)[:, None] * E + e[None, :]
        tl.store(made_ptr + line, made.to(made_ptr.dtype.element_ty), mask=(e < E)[None, :])
    tl.store(dstate_ptr + place * D * E + state_at, state, mask=state_mask)


def launch_read_back(
    q: Tensor, k: Tensor, dout: Tensor, decay: Tensor | None, beta: Tensor | None,
    dfinal: Tensor | None, pairs: Tensor, inverse: Tensor | None, scale: float, block: int,
    warps: int, stages: int, precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns what `read_back` of `delta_reference` does: [B, H, N, C, E], [B, H, N, D, E], first.

    Args:
        q: Queries; operands as `launch_scan` has them.
        k: Keys.
        dout: Gradient by rows [B, H, T, E]; elements of a row are adjacent.
        decay: Logarithms.
        beta: Rates.
        dfinal: Gradient by the last state, contiguous.
        pairs: What rows of a chunk read of each other.
        inverse: T of a delta rule.
        scale: Factor of out.
        block: Columns of a program.
        warps: Of a program.
        stages: Depth of the software pipeline.
        precision: Of products of f32.
    """
    B, H, T, D = k.shape
    E, (num_chunks, chunk) = dout.shape[3], pairs.shape[2:4]
    made = dout.new_empty((B, H, num_chunks, chunk, E))
    shape = (B, H, num_chunks, D, E)
    after = torch.empty(shape, dtype=products_dtype(q), device=q.device)
    dstate = torch.empty((B, H, D, E), dtype=torch.float32, device=q.device)
    given = [q if x is None else x for x in (decay, beta, pairs, inverse, dfinal)]
    wrap_triton(delta_read_back_kernel)[(triton.cdiv(E, block) * B * H,)](
        q, k, dout, *given, made, after, dstate,
        *q.stride()[:3], *k.stride()[:3], *dout.stride()[:3], H, T, D, E, scale,
        HAS_FINAL=dfinal is not None,
        **scan_options(q, decay, beta, chunk, block, warps, stages, precision),
    )  # fmt: skip
    return made, after, dstate
