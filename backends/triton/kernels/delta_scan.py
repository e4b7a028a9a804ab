"""States of a recurrence from chunk to chunk, with a delta rule or factors per channel.

A program has BLOCK_E columns of a head's state in registers, in f32. What the rows of a chunk read
of each other, and the inverse of a delta rule, are in memory. For gradients it also keeps the
state before each chunk and what rows wrote. Source: see `delta_reference`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import part_and_plane
from regraft.backends.triton.kernels.operators import block_of, wrap_triton


@triton.jit
def factors_since(
    decay_base, first, T, D, DECAY: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Returns factors from the state before a chunk to its rows, and to the state after it.

    Sums of one sign, whose errors shrink with what they are the exponents of. -128 is a factor of 0
    in f32, as is that of -inf.
    """
    row, d = first + tl.arange(0, CHUNK), tl.arange(0, BLOCK_D)
    if DECAY == "channel":
        at = decay_base + row.to(tl.int64)[:, None] * D + d[None, :]
        mask = (row < T)[:, None] & (d < D)[None, :]
        g = tl.maximum(tl.load(at, mask=mask, other=0.0).to(tl.float32), -128.0)
        since = tl.exp(tl.cumsum(g, axis=0))
        whole = tl.exp(tl.sum(g, axis=0))[:, None]
    elif DECAY == "token":
        g = tl.load(decay_base + row, mask=row < T, other=0.0).to(tl.float32)
        g = tl.maximum(g, -128.0)
        since = tl.exp(tl.cumsum(g, axis=0))[:, None]
        whole = tl.exp(tl.sum(g, axis=0))
    else:
        since = tl.full([CHUNK, 1], 1.0, tl.float32)
        whole = 1.0
    return since, whole


@triton.jit
def factors_until(
    decay_base, first, T, D, DECAY: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Returns factors from the rows of a chunk to the state after it: those of the rows between."""
    c, d = tl.arange(0, CHUNK), tl.arange(0, BLOCK_D)
    row = first + c
    has_next = (row + 1 < T) & (c + 1 < CHUNK)
    if DECAY == "channel":
        at = decay_base + (row + 1).to(tl.int64)[:, None] * D + d[None, :]
        later = tl.load(at, mask=has_next[:, None] & (d < D)[None, :], other=0.0)
        later = tl.maximum(later.to(tl.float32), -128.0)
        until = tl.exp(tl.cumsum(later, axis=0, reverse=True))
    elif DECAY == "token":
        later = tl.load(decay_base + row + 1, mask=has_next, other=0.0).to(tl.float32)
        later = tl.maximum(later, -128.0)
        until = tl.exp(tl.cumsum(later, axis=0, reverse=True))[:, None]
    else:
        until = tl.full([CHUNK, 1], 1.0, tl.float32)
    return until


@triton.jit
def state_columns(
    given_ptr, place, d, e, D, E,
    IS_GIVEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Returns columns e of the state of a head at `place` in f32, where they are, and which exist.

    Zeros where none is given.
    """
    at = d[:, None] * E + e[None, :]
    mask = (d < D)[:, None] & (e < E)[None, :]
    state = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    if IS_GIVEN:
        given = given_ptr + place * D * E + at
        state += tl.load(given, mask=mask, other=0.0).to(tl.float32)
    return state, at, mask


@triton.jit
def read_state(rows, state, total, PARTED: tl.constexpr, PRECISION: tl.constexpr):
    """Returns total + rows @ state.

    Where the dtype of rows has the range of f32, the state is the sum of two parts of that dtype:
    as exact as tf32 at least, and rows are multiplied from where they lie.
    """
    if PARTED:
        high = state.to(rows.dtype)
        low = (state - high.to(tl.float32)).to(rows.dtype)
        total = tl.dot(rows, low, tl.dot(rows, high, total))
    elif state.shape[0] > 128 and rows.shape[0] <= 16:
        # every warp would hold all rows, which do not fit
        M: tl.constexpr = rows.shape[0]
        K: tl.constexpr = rows.shape[1] // 4
        parts = tl.permute(tl.reshape(rows.to(tl.float32), [M, 4, K]), (1, 0, 2))
        others = tl.reshape(state, [4, K, state.shape[1]])
        total += tl.sum(tl.dot(parts, others, input_precision=PRECISION), axis=0)
    else:
        total = tl.dot(rows.to(tl.float32), state, total, input_precision=PRECISION)
    return total


@triton.jit
def delta_scan_kernel(
    q_ptr, k_ptr, v_ptr, decay_ptr, beta_ptr, pairs_ptr, inverse_ptr, state_ptr,
    out_ptr, final_ptr, states_ptr, written_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    H, T, D, E, scale,
    DECAY: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_STATE: tl.constexpr,
    KEEP: tl.constexpr,
    PARTED: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_E columns of what a head's rows read, and of the state after the last."""
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
        state_ptr, place, d, e, D, E, HAS_STATE, BLOCK_D, BLOCK_E
    )
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head * v_head_stride
    decay_base = decay_ptr + place * T * (D if DECAY == "channel" else 1)
    for idx in range(0, num_chunks):
        first = idx * CHUNK
        row = (first + c).to(tl.int64)[:, None]
        inside = first + c < T
        mask = inside[:, None] & (d < D)[None, :]
        v_mask = inside[:, None] & (e < E)[None, :]
        chunk = place * num_chunks + idx
        tile = chunk * CHUNK * CHUNK + c[:, None] * CHUNK + c[None, :]
        k = tl.load(k_base + row * k_row_stride + d[None, :], mask=mask, other=0.0)
        v = tl.load(v_base + row * v_row_stride + e[None, :], mask=v_mask, other=0.0)
        since, whole = factors_since(decay_base, first, T, D, DECAY, CHUNK, BLOCK_D)
        kind = v.dtype
        if HAS_BETA:
            beta = tl.load(beta_ptr + place * T + first + c, mask=inside, other=0.0)
            inverse = tl.load(inverse_ptr + tile)
            # a factor of a whole row need not touch the row
            rows = (k.to(tl.float32) * since).to(kind) if DECAY == "channel" else k
            seen = tl.zeros([CHUNK, BLOCK_E], tl.float32)
            seen = read_state(rows, state, seen, PARTED, STATE_PRECISION)
            if DECAY == "token":
                seen *= since
            wanted = (v.to(tl.float32) - seen) * beta.to(tl.float32)[:, None]
            v = tl.dot(inverse, wanted.to(kind), input_precision=PRECISION).to(kind)
        if KEEP:
            kept = states_ptr + chunk * D * E + state_at
            tl.store(kept, state.to(states_ptr.dtype.element_ty), mask=state_mask)
            line = (chunk * CHUNK + c)[:, None] * E + e[None, :]
            tl.store(written_ptr + line, v, mask=(e < E)[None, :])
        else:
            q = tl.load(q_base + row * q_row_stride + d[None, :], mask=mask, other=0.0)
            pairs = tl.load(pairs_ptr + tile)
            rows = (q.to(tl.float32) * since).to(kind) if DECAY == "channel" else q
            out = tl.zeros([CHUNK, BLOCK_E], tl.float32)
            out = read_state(rows, state, out, PARTED, STATE_PRECISION)
            if DECAY == "token":
                out *= since
            out = tl.dot(pairs, v, out, input_precision=PRECISION)
            out_at = out_ptr + (place * T + row) * E + e[None, :]
            tl.store(out_at, (out * scale).to(out_ptr.dtype.element_ty), mask=v_mask)
        until = factors_until(decay_base, first, T, D, DECAY, CHUNK, BLOCK_D)
        if DECAY == "channel":
            k = (k.to(tl.float32) * until).to(kind)
        elif DECAY == "token":
            v = (v.to(tl.float32) * until).to(kind)
        state = tl.dot(tl.trans(k), v, state * whole, input_precision=PRECISION)
    tl.store(final_ptr + place * D * E + state_at, state, mask=state_mask)


class ScanResults(NamedTuple):
    """What `launch_scan` returns.

    Attributes:
        out: [B, H, T, E]; not written where states are kept.
        final: The last state [B, H, D, E], f32.
        states: States before chunks [B, H, N, D, E].
        written: What rows wrote [B, H, N, C, E].
    """

    out: Tensor
    final: Tensor
    states: Tensor
    written: Tensor


def decay_kind(decay: Tensor | None) -> str:
    """Returns what a decay has factors of: `none`, `token` or `channel`."""
    return "none" if decay is None else "channel" if decay.ndim == 4 else "token"


def products_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of states in products of gradients: f16 is too narrow for them."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def is_parted(x: Tensor) -> bool:
    """Whether states are read as the sum of two parts of a dtype: f16 has too little range."""
    return bool(x.dtype == torch.bfloat16)


def scan_options(
    q: Tensor, decay: Tensor | None, beta: Tensor | None, chunk: int, block: int, warps: int,
    stages: int, precision: str,
) -> dict[str, object]:  # fmt: skip
    """Returns what a launch compiles a kernel of chunks for, besides what it is given."""
    return {
        "DECAY": decay_kind(decay),
        "HAS_BETA": beta is not None,
        "PARTED": is_parted(q),
        "PRECISION": precision,
        "STATE_PRECISION": precision if q.dtype == torch.float32 else "tf32",
        "CHUNK": chunk,
        "BLOCK_D": block_of(q.shape[3]),
        "BLOCK_E": block,
        "num_warps": warps,
        "num_stages": stages,
    }


def launch_scan(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, pairs: Tensor, inverse: Tensor | None, scale: float, keep: bool,
    block: int, warps: int, stages: int, precision: str,
) -> ScanResults:  # fmt: skip
    """Launches the kernel; operands as `launch_delta_pairs` has them.

    Args:
        q: Queries.
        k: Keys.
        v: Values [B, H, T, E].
        decay: Logarithms [B, H, T] or [B, H, T, D], contiguous.
        beta: Rates.
        state: The first state, contiguous.
        pairs: What rows of a chunk read of each other.
        inverse: T of a delta rule.
        scale: Factor of out.
        keep: Whether states and what rows wrote are kept, instead of out.
        block: Columns of a program.
        warps: Of a program.
        stages: Depth of the software pipeline.
        precision: Of products of f32.
    """
    B, H, T, D = k.shape
    E, (num_chunks, chunk) = v.shape[3], pairs.shape[2:4]
    out = v.new_empty((0,) if keep else (B, H, T, E))
    final = torch.empty((B, H, D, E), dtype=torch.float32, device=q.device)
    shape = (B, H, num_chunks, D, E) if keep else (0,)
    states = torch.empty(shape, dtype=products_dtype(q), device=q.device)
    written = v.new_empty((B, H, num_chunks, chunk, E) if keep else (0,))
    given = [q if x is None else x for x in (decay, beta, pairs, inverse, state)]
    wrap_triton(delta_scan_kernel)[(triton.cdiv(E, block) * B * H,)](
        q, k, v, *given, out, final, states, written,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], H, T, D, E, scale,
        HAS_STATE=state is not None,
        KEEP=keep,
        **scan_options(q, decay, beta, chunk, block, warps, stages, precision),
    )  # fmt: skip
    return ScanResults(out, final, states, written)
