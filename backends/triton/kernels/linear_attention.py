"""Causal linear attention with a scalar decay, in chunks: one kernel, forward and backward.

out_i = scale * sum over j <= i of exp(g_{j+1} + ... + g_i) (f(q_i) . f(k_j)) v_j, the recurrence
S_i = exp(g_i) S_{i-1} + f(k_i)^T v_i read by f(q_i). Within a chunk the products are formed as in
attention, between chunks the state [D, E] is carried in registers, in f32: it is never in memory,
and neither are features. A row may be divided by its sum of products, which is what a further
value of 1 would give: its column of the state is a vector beside it.
Source: Katharopoulos et al. 2020 (linear attention), Sun et al. 2023 (RetNet: chunks), Qin et al.
2024 (Lightning Attention-2: the order of the loops). The gradients are the same sums with other
operands: by features of q of (dout, v, k), of k of (v, dout, q), and dv of (k, q, dout), the last
two from the end to the start (`FORM`). Of a quotient, dout is that of its numerator, divided by
the sum row by row (`factor`), with a further column for the sum (-`offset` times that).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention import adjacent
from regraft.backends.triton.kernels.attention_tiles import part_and_plane
from regraft.backends.triton.kernels.configs import carried_stages, config_for
from regraft.backends.triton.kernels.linear_features import column_features, tile_features
from regraft.backends.triton.kernels.operators import block_of, wrap_triton
from regraft.backends.triton.kernels.parted_dot import parted_dot

FORMS = ("forward", "queries", "keys", "values")
"""What a launch computes: attention, or the gradient by features of queries, of keys, by values."""


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
    q_ptr, k_ptr, v_ptr, decay_ptr, state_ptr, factor_ptr, offset_ptr, out_ptr, final_ptr, sums_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    state_row_stride, final_row_stride,
    H, T, D, E, q_size, v_size, scale, epsilon,
    HAS_DECAY: tl.constexpr,
    HAS_STATE: tl.constexpr,
    FORM: tl.constexpr,
    STRICT: tl.constexpr,
    MAP: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_E columns of one head, chunk after chunk, and the state after the last."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    epsilon = tl.cast(epsilon, tl.float32)
    # maps of what stands for queries and keys, and for values; the quotient's further column
    # is one of the state ("forward", "values") or a row of it
    MAPPED: tl.constexpr = FORM == "forward" or FORM == "values"
    PAIR_MAP: tl.constexpr = MAP if MAPPED else "none"
    VALUE_MAP: tl.constexpr = "none" if MAPPED else MAP
    REVERSE: tl.constexpr = FORM == "keys" or FORM == "values"
    HAS_COLUMN: tl.constexpr = NORMALIZE and MAPPED
    HAS_ROW: tl.constexpr = NORMALIZE and not MAPPED
    part, plane = part_and_plane(tl.cdiv(E, BLOCK_E))
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    place = plane.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    c = tl.arange(0, CHUNK)
    height = D + 1 if HAS_ROW else D
    state_base = state_ptr + place * height * state_row_stride
    final_base = final_ptr + place * height * final_row_stride
    state_mask = (d < D)[:, None] & (e < E)[None, :]
    state = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    column = tl.zeros([BLOCK_D], tl.float32)
    line = tl.zeros([BLOCK_E], tl.float32)
    if HAS_STATE:
        state_place = state_base + d[:, None] * state_row_stride + e[None, :]
        state += tl.load(state_place, mask=state_mask, other=0.0).to(tl.float32)
        if HAS_COLUMN:
            column += tl.load(state_base + d * state_row_stride + E, mask=d < D, other=0.0)
        if HAS_ROW:
            line += tl.load(state_base + D * state_row_stride + e, mask=e < E, other=0.0)
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head * v_head_stride
    # of `hedgehog`, channels stand twice
    pair_channel = d % q_size if PAIR_MAP == "hedgehog" else d
    value_channel = e % v_size if VALUE_MAP == "hedgehog" else e
    for first in range(0, T, CHUNK):
        step = first + c
        inside = step < T
        row = step
        if REVERSE:
            row = T - 1 - step
        row = tl.where(inside, row, 0).to(tl.int64)
        q_mask = inside[:, None] & (d < D)[None, :]
        q = tl.load(
            q_base + row[:, None] * q_row_stride + pair_channel[None, :], mask=q_mask, other=0.0
        )
        k_mask = inside[None, :] & (d < D)[:, None]
        k = tl.load(
            k_base + row[None, :] * k_row_stride + pair_channel[:, None], mask=k_mask, other=0.0
        )
        v_mask = inside[:, None] & (e < E)[None, :]
        v = tl.load(
            v_base + row[:, None] * v_row_stride + value_channel[None, :], mask=v_mask, other=0.0
        )
        kind = v.dtype
        products = tl.zeros([CHUNK, CHUNK], tl.float32)
        if PAIR_MAP != "none":
            read = tile_features(q, q_mask, (d < q_size)[None, :], PAIR_MAP, 1)
            kept = tile_features(k, k_mask, (d < q_size)[:, None], PAIR_MAP, 0)
            products = parted_dot(read.to(q.dtype), kept.to(k.dtype), products, PRECISION)
        else:
            products = parted_dot(q, k, products, PRECISION)
            read, kept = q.to(tl.float32), k.to(tl.float32)
        if VALUE_MAP == "softmax" or VALUE_MAP == "hedgehog":
            w = tl.arange(0, BLOCK_V)
            whole_mask = inside[:, None] & (w < v_size)[None, :]
            whole = tl.load(
                v_base + row[:, None] * v_row_stride + w[None, :], mask=whole_mask, other=0.0
            )
            v = column_features(v, v_mask, (e < v_size)[None, :], whole, whole_mask, VALUE_MAP)
        elif VALUE_MAP != "none":
            v = tile_features(v, v_mask, v_mask, VALUE_MAP, 1)
        further = tl.where(inside, 1.0, 0.0)
        if NORMALIZE and FORM != "forward":
            factor = tl.load(factor_ptr + place * T + row, mask=inside, other=0.0)
            offset = tl.load(offset_ptr + place * T + row, mask=inside, other=0.0)
            further = -offset * factor
            if FORM == "queries":
                products = (products - offset[:, None]) * factor[:, None]
                read = read * factor[:, None]
            elif FORM == "keys":
                products = (products - offset[None, :]) * factor[None, :]
                kept = kept * factor[None, :]
            else:
                v = v.to(tl.float32) * factor[:, None]
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
            since = tl.exp(a + b)
            until = tl.exp((all_a - a) + (all_b - b))
            shrink = tl.exp(all_a + all_b)
            read = read * since[:, None]
            kept = kept * until[None, :]
        else:
            products = tl.where(is_before, products, 0.0)
            since = tl.where(inside, 1.0, 0.0)
            until = since
            shrink = 1.0
        if WIDE:
            v = v.to(tl.float32)
            out = tl.dot(products, v, input_precision=STATE_PRECISION)
            gained = tl.dot(kept, v, input_precision=STATE_PRECISION)
        else:
            v = v.to(kind)
            out = tl.dot(products.to(kind), v, input_precision=PRECISION)
            gained = tl.dot(kept.to(kind), v, input_precision=PRECISION)
        out = parted_dot(read, state, out, STATE_PRECISION) * scale
        state = state * shrink + gained
        if HAS_COLUMN:
            if FORM == "forward":
                total = tl.sum(products, axis=1) + tl.sum(read * column[None, :], axis=1)
                total = total * scale + epsilon
                out = out / tl.where(inside, total, 1.0)[:, None]
                # the interpreter of Triton 3.9 takes no masks of a condition on a scalar
                is_written = inside & (row < tl.where(part == 0, T, 0))
                tl.store(sums_ptr + place * T + row, total, mask=is_written)
            column = column * shrink + tl.sum(kept * further[None, :], axis=1)
        if HAS_ROW:
            ones = tl.where(inside, 1.0, 0.0)
            reader = further if FORM == "queries" else ones
            keeper = ones if FORM == "queries" else further
            out += (reader * since)[:, None] * line[None, :] * scale
            wide = v.to(tl.float32)
            line = line * shrink + tl.sum((keeper * until)[:, None] * wide, axis=0)
        out_place = out_ptr + (place * T + row)[:, None] * E + e[None, :]
        tl.store(out_place, out.to(out_ptr.dtype.element_ty), mask=v_mask)
    tl.store(final_base + d[:, None] * final_row_stride + e[None, :], state, mask=state_mask)
    if HAS_COLUMN:
        tail_end = tl.where(part == 0, final_row_stride, 0)
        tail = tl.arange(0, 16)[None, :]
        tail_place = final_base + d[:, None] * final_row_stride + E + tail
        tail_mask = (d < D)[:, None] & (E + tail < tail_end)
        tl.store(tail_place, tl.where(tail == 0, column[:, None], 0.0), mask=tail_mask)
    if HAS_ROW:
        tl.store(final_base + D * final_row_stride + e, line, mask=e < E)


def state_width(E: int, normalize: bool) -> int:
    """Returns how many elements a row of a state has in memory.

    With a column of sums rows end in zeros, so that each begins at a multiple of 16 elements.
    """
    return -(-(E + 1) // 16) * 16 if normalize else E


def by_rows(state: Tensor) -> Tensor:
    """Returns a state whose rows follow each other at one distance; the same one where they do."""
    _, H, D, _ = state.shape
    row = state.stride(2)
    return state if state.stride() == (H * D * row, D * row, row, 1) else state.contiguous()


def over_pairs(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, reverse: bool,
    strict: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns out [B, H, T, E] and the last state [B, H, D, E], by the sums over all pairs.

    Operands are features, f32 or f64.
    """
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
    share = torch.exp(between.masked_fill(~is_before, -torch.inf)).to(q.dtype)
    out = (q @ k.transpose(-1, -2) * share) @ v
    whole = g.sum(-1, keepdim=True)
    kept = k * torch.exp(whole - a)[..., None].to(q.dtype)
    last = kept.transpose(-1, -2) @ v
    if state is not None:
        out = out + (q * torch.exp(a)[..., None].to(q.dtype)) @ state.to(q.dtype)
        last = last + state.to(q.dtype) * torch.exp(whole)[..., None].to(q.dtype)
    return out.flip(2) if reverse else out, last


def launch_chunks(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None,
    factor: Tensor | None, offset: Tensor | None, results: tuple[Tensor, Tensor, Tensor],
    scale: float, epsilon: float, feature_map: str, normalize: bool, form: str, strict: bool,
    precision: str,
) -> None:  # fmt: skip
    """Launches the kernel of chunks, which writes out, the last state and sums of rows.

    Args:
        q: What stands for queries; see `FORM` for it and the next two.
        k: What stands for keys.
        v: What stands for values.
        decay: Logarithms of factors [B, H, T].
        state: The state before the first row.
        factor: 1 / sum of a row, f32 [B, H, T]: of gradients of quotients.
        offset: What a row's sum had as gradient, times -sum: dout . out, f32 [B, H, T].
        results: What is written.
        scale: Factor of out.
        epsilon: Joins the sums.
        feature_map: One of `LINEAR_FEATURES`.
        normalize: Whether rows are quotients.
        form: One of `FORMS`.
        strict: Whether a row leaves itself out.
        precision: Of products of f32.
    """
    out, final, sums = results
    B, H, T, E = out.shape
    is_mapped = form in ("forward", "values")
    extra = int(normalize)
    D = final.shape[2] - (0 if is_mapped else extra)
    q, k, v = adjacent(q, k, v)
    decay, factor, offset = (x if x is None else x.contiguous() for x in (decay, factor, offset))
    state = None if state is None else by_rows(state)
    given = [q if x is None else x for x in (decay, state, factor, offset)]
    config = config_for("linear_attention", q, max(D, E))
    block = min(block_of(E), config["e"])
    is_f32 = q.dtype == torch.float32
    wrap_triton(linear_attention_kernel)[(triton.cdiv(E, block) * B * H,)](
        q, k, v, *given, out, final, sums,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], given[1].stride(2), final.stride(2),
        H, T, D, E, q.shape[3], v.shape[3], scale, epsilon,
        HAS_DECAY=decay is not None,
        HAS_STATE=state is not None,
        FORM=form,
        STRICT=strict,
        MAP=feature_map,
        NORMALIZE=normalize,
        # sums of f16 overflow, and their reciprocals are too small for it
        WIDE=normalize and q.dtype == torch.float16,
        PRECISION=precision,
        STATE_PRECISION=precision if is_f32 else "tf32",
        # features are registers as well
        CHUNK=config["chunk" if feature_map == "none" and not normalize else "mapped"],
        BLOCK_D=block_of(D),
        BLOCK_E=block,
        BLOCK_V=block_of(v.shape[3]),
        num_warps=config["warps"],
        num_stages=carried_stages(config, q),
    )  # fmt: skip
