"""One token of linear attention: the state is read and written once, features in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention import adjacent
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.linear_attention import by_rows
from regraft.backends.triton.kernels.linear_features import tile_features
from regraft.backends.triton.kernels.operators import block_of, wrap_triton


@triton.jit
def linear_attention_step_kernel(
    q_ptr, k_ptr, v_ptr, decay_ptr, beta_ptr, state_ptr, out_ptr, final_ptr, sums_ptr,
    q_batch_stride, q_head_stride,
    k_batch_stride, k_head_stride,
    v_batch_stride, v_head_stride,
    state_row_stride, final_row_stride,
    H, D, E, q_size, scale, epsilon,
    DECAY: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_STATE: tl.constexpr,
    MAP: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_E columns of the state after one token of a head, and what the token reads."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    epsilon = tl.cast(epsilon, tl.float32)
    # on the first axis of the grid: others end at 65,535
    batch = (tl.program_id(0) // H).to(tl.int64)
    head = (tl.program_id(0) % H).to(tl.int64)
    place = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)[:, None]
    e = (tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E))[None, :]
    channel = d % q_size if MAP == "hedgehog" else d
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head * v_head_stride
    q = tl.load(q_base + channel, mask=d < D, other=0.0)
    k = tl.load(k_base + channel, mask=d < D, other=0.0)
    v = tl.load(v_base + e, mask=e < E, other=0.0)
    q = tile_features(q, d < D, d < q_size, MAP, 0)
    k = tile_features(k, d < D, d < q_size, MAP, 0)
    row = place * D + d
    state_base, final_base = state_ptr + row * state_row_stride, final_ptr + row * final_row_stride
    state_mask = (d < D) & (e < E)
    state = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    column = tl.zeros([BLOCK_D, 1], tl.float32)
    if HAS_STATE:
        state += tl.load(state_base + e, mask=state_mask, other=0.0).to(tl.float32)
        if NORMALIZE:
            line = place * D + tl.arange(0, BLOCK_D)
            known = tl.arange(0, BLOCK_D) < D
            found = tl.load(state_ptr + line * state_row_stride + E, mask=known, other=0.0)
            column += found.to(tl.float32)[:, None]
    if DECAY == "token":
        factor = tl.exp(tl.load(decay_ptr + place).to(tl.float32))
        state, column = state * factor, column * factor
    elif DECAY == "channel":
        state *= tl.exp(tl.load(decay_ptr + row, mask=d < D, other=0.0).to(tl.float32))
    v = v.to(tl.float32)
    if HAS_BETA:
        # a delta rule writes what the state does not hold yet
        rate = tl.load(beta_ptr + place).to(tl.float32)
        v = (v - tl.sum(k * state, axis=0, keep_dims=True)) * rate
    state += k * v
    out = tl.sum(q * state, axis=0, keep_dims=True) * scale
    if NORMALIZE:
        column += k
        total = tl.sum(q * column, axis=0, keep_dims=True) * scale + epsilon
        out = out / total
        is_first = tl.program_id(1) == 0
        tail = tl.arange(0, 16)[None, :]
        # the interpreter of Triton 3.9 takes no masks of a condition on a scalar
        tail_mask = (d < D) & (E + tail < tl.where(is_first, final_row_stride, 0))
        tl.store(final_base + E + tail, tl.where(tail == 0, column, 0.0), mask=tail_mask)
        tl.store(sums_ptr + place, tl.sum(total), mask=is_first)
    tl.store(out_ptr + place * E + e, out.to(out_ptr.dtype.element_ty), mask=e < E)
    tl.store(final_base + e, state, mask=state_mask)


def launch_step(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor], scale: float, epsilon: float, feature_map: str,
    normalize: bool, beta: Tensor | None = None,
) -> None:  # fmt: skip
    """Launches the kernel of one token; see `launch_chunks`.

    Of no quotient, `decay` may be one per channel [B, H, 1, D], and `beta` [B, H, 1] the rate of a
    delta rule.
    """
    out, final, sums = results
    B, H, _, E = out.shape
    D = final.shape[2]
    q, k, v = adjacent(q, k, v)
    given = [q if x is None else x.contiguous() for x in (decay, beta)]
    given.append(q if state is None else by_rows(state))
    block = min(block_of(E), config_for("linear_attention", q, max(D, E))["e"])
    wrap_triton(linear_attention_step_kernel)[(B * H, triton.cdiv(E, block))](
        q, k, v, *given, out, final, sums,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], given[2].stride(2), final.stride(2),
        H, D, E, q.shape[3], scale, epsilon,
        DECAY="none" if decay is None else "channel" if decay.ndim == 4 else "token",
        HAS_BETA=beta is not None,
        HAS_STATE=state is not None,
        MAP=feature_map,
        NORMALIZE=normalize,
        BLOCK_D=block_of(D),
        BLOCK_E=block,
        num_warps=4,
    )  # fmt: skip
