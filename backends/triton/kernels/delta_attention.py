"""Linear attention with a delta rule or factors per channel, as a function that differentiates.

Three kernels in a row: what the rows of a chunk read of each other (all chunks at once), the states
from chunk to chunk, and for gradients those from the end to the start. The products that remain are
those of rows of one chunk with each other and with its states: batches of the vendor's library.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regraft.backends.triton.kernels.attention import adjacent
from regraft.backends.triton.kernels.channel_pair_gradient import launch_channel_pair_gradient
from regraft.backends.triton.kernels.channel_pairs import launch_channel_pairs
from regraft.backends.triton.kernels.configs import carried_stages, config_for
from regraft.backends.triton.kernels.delta_pairs import launch_delta_pairs
from regraft.backends.triton.kernels.delta_read_back import launch_read_back
from regraft.backends.triton.kernels.delta_reference import (
    RowGradients,
    chunk_pairs,
    chunks_of,
    pair_sums_gradient,
    read_back,
    row_gradients,
    scan,
    split,
)
from regraft.backends.triton.kernels.delta_scan import delta_scan_kernel, launch_scan
from regraft.backends.triton.kernels.linear_attention_step import launch_step
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_choice,
    check_operands,
    in_autocast,
)
from regraft.backends.triton.kernels.operators import block_of, operator

REFERENCE_CHUNK = 32
REFERENCE_CHUNK_PER_CHANNEL = 16


def _reference_chunk(decay: Tensor | None) -> int:
    per_channel = decay is not None and decay.ndim == 4
    return REFERENCE_CHUNK_PER_CHANNEL if per_channel else REFERENCE_CHUNK


def reference_gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns out [B, H, T, E] and the last state [B, H, D, E], chunk by chunk."""
    c = split(q, k, v, decay, beta, min(_reference_chunk(decay), max(q.shape[2], 1)))
    out, final, _, _ = scan(c, *chunk_pairs(c), state, scale)
    return out[:, :, : q.shape[2]].to(q.dtype), final


def _allocate_gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, H, T, D = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty((B, H, T, v.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty((B, H, D, v.shape[3]), dtype=wide, device=q.device)


class _Launch(NamedTuple):
    """How kernels are launched: rows of a chunk, columns of a program, warps, stages."""

    chunk: int
    pair_warps: int
    block: int
    warps: int
    stages: int


def _launch_of(q: Tensor, v: Tensor, decay: Tensor | None) -> _Launch:
    config = config_for("gated_delta", q, max(q.shape[3], v.shape[3]))
    kind = "channel_" if decay is not None and decay.ndim == 4 else ""
    return _Launch(
        config[f"{kind}chunk"], config["pair_warps"], min(block_of(v.shape[3]), config["e"]),
        config[f"{kind}warps"], carried_stages(config, q),
    )  # fmt: skip


def _launch_pairs(
    q: Tensor, k: Tensor, decay: Tensor | None, beta: Tensor | None, how: _Launch, precision: str
) -> tuple[Tensor, Tensor | None]:
    if decay is not None and decay.ndim == 4:
        return launch_channel_pairs(q, k, decay, beta, how.chunk, how.pair_warps, precision)
    return launch_delta_pairs(q, k, decay, beta, how.chunk, how.pair_warps, precision)


def _launch_gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if 0 in (q.shape[0], q.shape[1], q.shape[3], v.shape[3]):
        out, final = _allocate_gated_delta(q, k, v, decay, beta, state, scale, precision)
        return out.zero_(), final
    if q.shape[2] == 1:
        out, final = _allocate_gated_delta(q, k, v, decay, beta, state, scale, precision)
        launch_step(q, k, v, decay, state, (out, final, out), scale, 0.0, "none", False, beta)
        return out, final
    q, k, v = adjacent(q, k, v)
    decay, beta, state = (x if x is None else x.contiguous() for x in (decay, beta, state))
    how = _launch_of(q, v, decay)
    pairs, inverse = _launch_pairs(q, k, decay, beta, how, precision)
    found = launch_scan(
        q, k, v, decay, beta, state, pairs, inverse, scale, False, *how[2:], precision
    )
    return found.out, found.final


gated_delta_forward = operator(
    "gated_delta",
    _launch_gated_delta,
    allocate=_allocate_gated_delta,
    reference=reference_gated_delta,
    kernel=delta_scan_kernel,
)


_Given = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _gradients_of(found: RowGradients, dstate: Tensor, given: _Given) -> _Gradients:
    """Returns gradients as operands [B, H, T, ...] and a state are; empty ones of what is None."""
    q, k, v, decay, beta, state = given

    def laid(x: Tensor | None, like: Tensor | None) -> Tensor:
        if x is None or like is None:
            return q.new_empty(0)
        rows = x.flatten(2, 3)[:, :, : q.shape[2]]
        return rows.reshape(like.shape).to(like.dtype).contiguous()

    return (
        laid(found.q, q), laid(found.k, k), laid(found.v, v), laid(found.decay, decay),
        laid(found.beta, beta), q.new_empty(0) if state is None else dstate.to(state.dtype),
    )  # fmt: skip


def reference_gated_delta_gradient(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, dout: Tensor, dfinal: Tensor | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients by the first six operands; empty tensors by those that are None."""
    given = (q, k, v, decay, beta, state)
    if 0 in (q.numel(), v.numel()):
        return _nothing(given, dfinal)
    c = split(q, k, v, decay, beta, min(_reference_chunk(decay), q.shape[2]))
    pairs, inverse = chunk_pairs(c)
    _, _, states, written = scan(c, pairs, inverse, state, scale)
    rows = chunks_of(dout.to(c.q.dtype), c.q.shape[3])
    made, after, dstate = read_back(c, pairs, inverse, rows, dfinal, scale)
    found = row_gradients(
        c, rows, torch.stack(written, 2), torch.stack(made, 2), torch.stack(states, 2),
        torch.stack(after, 2), scale, pair_sums_gradient,
    )  # fmt: skip
    return _gradients_of(found, dstate, given)


def _nothing(given: _Given, dfinal: Tensor | None) -> _Gradients:
    """Returns gradients where there is no row: the last state is the first one."""
    q, k, v, decay, beta, state = given

    def none(x: Tensor | None) -> Tensor:
        return q.new_empty(0) if x is None else torch.zeros_like(x).contiguous()

    first = none(state) if state is None or dfinal is None else dfinal.to(state.dtype).clone()
    return none(q), none(k), none(v), none(decay), none(beta), first


def _allocate_gated_delta_gradient(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, dout: Tensor, dfinal: Tensor | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip

    def made(x: Tensor | None) -> Tensor:
        return q.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=q.device)

    return made(q), made(k), made(v), made(decay), made(beta), made(state)


def _launch_gated_delta_gradient(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, dout: Tensor, dfinal: Tensor | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    given = (q, k, v, decay, beta, state)
    if 0 in (q.numel(), v.numel()):
        return _nothing(given, dfinal)
    q, k, v, dout = adjacent(q, k, v, dout)
    decay, beta, state, dfinal = (
        x if x is None else x.contiguous() for x in (decay, beta, state, dfinal)
    )
    how = _launch_of(q, v, decay)
    pairs, inverse = _launch_pairs(q, k, decay, beta, how, precision)
    kept = launch_scan(
        q, k, v, decay, beta, state, pairs, inverse, scale, True, *how[2:], precision
    )
    made, after, dstate = launch_read_back(
        q, k, dout, decay, beta, dfinal, pairs, inverse, scale, *how[2:], precision
    )
    c, kind = split(q, k, v, decay, beta, how.chunk), kept.states.dtype

    def pair_gradient(
        of_pairs: Tensor, x: Tensor, y: Tensor, factors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if factors is not None and factors.shape[4] != 1:
            wide = precision if q.dtype == torch.float32 else "tf32"
            return launch_channel_pair_gradient(of_pairs, x, y, factors, wide)
        # of bf16 the products are those of bf16
        dx, dy = pair_sums_gradient(of_pairs, x.to(kind), y.to(kind), factors)
        return dx.to(x.dtype), dy.to(x.dtype)

    found = row_gradients(
        c, chunks_of(dout, how.chunk), kept.written, made, kept.states, after, scale, pair_gradient
    )
    return _gradients_of(found, dstate, given)


gated_delta_gradient = operator(
    "gated_delta_gradient",
    _launch_gated_delta_gradient,
    allocate=_allocate_gated_delta_gradient,
    reference=reference_gated_delta_gradient,
    kernel=delta_scan_kernel,
)


def _keep_gated_delta(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    *tensors, ctx.scale, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_gated_delta(
    ctx: Any, dout: Tensor | None, dfinal: Tensor | None
) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors
    if dout is None:
        q, v = given[0], given[2]
        dout = q.new_zeros((*q.shape[:3], v.shape[3]))
    made = gated_delta_gradient(*given, dout, dfinal, ctx.scale, ctx.precision)
    wanted = (None if x is None else d for x, d in zip(given, made, strict=True))
    return (*wanted, None, None)


gated_delta_forward.register_autograd(_differentiate_gated_delta, setup_context=_keep_gated_delta)


def gated_delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    state: Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    epsilon: float = 0.0,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Returns causal linear attention [B, H, T, E], and the state [B, G, D, E] in f32 after it.

    Token by token, the state is multiplied by exp(decay); k writes v, or with `beta` the part of
    it, beta (v - what the state has at k), that the state does not hold; q reads the state. One
    token is a step of decoding: T = 1 with the state of the step before.

    Args:
        q: Queries [B, H, T, D], of any strides.
        k: Keys [B, G, T, D]; G divides H. A delta rule wants them of norm 1 at most.
        v: Values [B, G, T, E].
        decay: Logarithms of factors, at most 0: broadcast to [B, G, T], or to [B, G, T, D] where
            they have four axes.
        beta: Rates of a delta rule, broadcast to [B, G, T].
        state: The state before the first token.
        scale: Factor of the products.
        normalize: Whether a row is divided by its sum of products plus `epsilon`: the state's last
            column, one more than v has.
        epsilon: See `normalize`.
        precision: Of products of f32, as `tl.dot` has it.

    Raises:
        TypeError: Dtypes of queries, keys and values differ.
        ValueError: Heads do not divide, or sizes differ.
    """
    if q.shape[1] % k.shape[1] or k.shape[:3] != v.shape[:3] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"gated_delta_attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; "
            "expected [B, H, T, D], [B, G, T, D], [B, G, T, E] where G divides H"
        )
    q, k, v = in_autocast(q, k, v)
    if normalize:
        v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    check_operands(
        "gated_delta_attention", ("decay", "beta", "state"), q=(q, None), k=(k, None),
        v=(v, None), decay=(decay, None), beta=(beta, None),
        state=(state, (*k.shape[:2], k.shape[3], v.shape[3])),
    )  # fmt: skip
    check_choice("gated_delta_attention", "precision", precision, PRECISIONS)
    if decay is not None:
        if decay.ndim == 4 and decay.shape[3] == 1:
            decay = decay.squeeze(3)
        decay = decay.expand(k.shape if decay.ndim == 4 else k.shape[:3])
    beta = None if beta is None else beta.expand(k.shape[:3])
    group = q.shape[1] // k.shape[1]
    k, v, decay, beta, state = (
        x if x is None or group == 1 else x.repeat_interleave(group, 1)
        for x in (k, v, decay, beta, state)
    )
    out, final = gated_delta_forward(q, k, v, decay, beta, state, scale, precision)
    if normalize:
        out = out[..., :-1] / (out[..., -1:] + epsilon)
    return out, final if group == 1 else final[:, ::group]
