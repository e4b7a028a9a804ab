"""Recurrences with factors per channel and delta rules, chunk by chunk in PyTorch's operators.

S_i = diag(exp(g_i)) S_{i-1} + k_i u_i^T is read by q_i, where u_i = beta_i (v_i - S'_i^T k_i) of a
delta rule, S' being the state once it has decayed, and u_i = v_i of others. Within a chunk of C
rows, with the sums a of g from its first row on:

- what i reads of j is (q_i . k_j) exp(a_i - a_j), channel by channel: `pair_sums`;
- rows write U = T beta (V - exp(a) K S), where T inverts I + beta (K . K) exp(a_i - a_j), j < i;
- the state after it is exp(a_C) S + sum of exp(a_C - a_j) k_j u_j^T.

The first two are known for all chunks before the states are. Gradients follow the states from the
end to the start (`read_back`); all else is products of what rows of one chunk have
(`row_gradients`).
Source: Yang et al. 2024 (DeltaNet's chunks), Yang et al. 2025 (Gated DeltaNet); Yang et al. 2023
(GLA: factors per channel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def chunks_of(x: Tensor, rows: int) -> Tensor:
    """Returns x [B, H, T, ...] as [B, H, N, rows, ...], filled up with zeros."""
    B, H, T = x.shape[:3]
    more = -T % rows
    if more:
        x = torch.cat((x, x.new_zeros((B, H, more, *x.shape[3:]))), 2)
    return x.reshape(B, H, (T + more) // rows, rows, *x.shape[3:])


def below(rows: int, x: Tensor, strict: bool) -> Tensor:
    """Returns which of [rows, rows] lie below the diagonal, or on it too."""
    ones = torch.ones(rows, rows, dtype=torch.bool, device=x.device)
    return ones.tril(-1 if strict else 0)


def apart(decay: Tensor) -> Tensor:
    """Returns exp of the sums of logarithms [.., C, d] between rows: [.., C, C, d].

    Sums are f64: differences of larger ones would have their last digits.
    """
    sums = decay.clamp(min=-128).to(torch.float64).cumsum(-2)
    between = sums.unsqueeze(-2) - sums.unsqueeze(-3)
    hidden = ~below(decay.shape[-2], decay, strict=False).unsqueeze(-1)
    return between.masked_fill(hidden, -torch.inf).exp().to(decay.dtype)


class Factors(NamedTuple):
    """Factors of chunks, each [B, H, N, C or 1, D or 1]; those of no decay are 1.

    Attributes:
        since: From the state before a chunk to a row.
        until: From a row to the state after its chunk.
        whole: From the one state to the other.
    """

    since: Tensor
    until: Tensor
    whole: Tensor


def factors_of(decay: Tensor | None, x: Tensor) -> Factors:
    """Returns the factors of logarithms [B, H, N, C, D or 1]; `x` has the dtype."""
    if decay is None:
        one = x.new_ones((1, 1, 1, 1, 1))
        return Factors(one, one, one)
    decay = decay.clamp(min=-128)
    later = torch.cat((decay[..., 1:, :], torch.zeros_like(decay[..., :1, :])), -2)
    since, until = decay.cumsum(-2), later.flip(-2).cumsum(-2).flip(-2)
    return Factors(since.exp(), until.exp(), since[..., -1:, :].exp())


def pair_sums(x: Tensor, y: Tensor, decay: Tensor | None) -> Tensor:
    """Returns (x_i . y_j) exp(a_i - a_j) where j <= i, else 0; [B, H, N, C, C]."""
    if decay is None:
        return (x @ y.transpose(-1, -2)).masked_fill(~below(x.shape[-2], x, False), 0)
    if decay.shape[-1] == 1:
        return x @ y.transpose(-1, -2) * apart(decay).squeeze(-1)
    # [.., C, C, D] times [.., C, D, 1]
    return (apart(decay) * y.unsqueeze(-3) @ x.unsqueeze(-1)).squeeze(-1)


def pair_sums_gradient(
    pairs: Tensor, x: Tensor, y: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `pair_sums` by x and by y; `pairs` is that of its result."""
    if decay is None or decay.shape[-1] == 1:
        if decay is not None:
            pairs = pairs * apart(decay).squeeze(-1)
        pairs = pairs.to(x.dtype)
        return pairs @ y, pairs.transpose(-1, -2) @ x
    weighed = apart(decay) * pairs.unsqueeze(-1)
    return (weighed * y.unsqueeze(-3)).sum(-2), (weighed * x.unsqueeze(-2)).sum(-3)


def unit_inverse(lower: Tensor) -> Tensor:
    """Returns (I + lower)^-1; `lower` [.., C, C] is 0 on the diagonal and above.

    Blocks on the diagonal double: with X the inverses of two neighbours and L what couples them,
    their common inverse is X - X L X. Powers of `lower` would lose every digit where keys are
    alike.
    """
    rows = lower.shape[-1]
    place = torch.arange(rows, device=lower.device)
    inverse, size = torch.eye(rows, dtype=lower.dtype, device=lower.device), 1
    while size < rows:
        block = place // size
        couples = (block[:, None] == block[None, :] + 1) & (block[None, :] % 2 == 0)
        held = lower.masked_fill(~couples, 0)
        inverse, size = inverse - inverse @ held @ inverse, 2 * size
    return inverse


@dataclass(frozen=True, slots=True)
class Chunks:
    """Operands in chunks of C rows.

    Args:
        q: Queries [B, H, N, C, D].
        k: Keys.
        v: Values [B, H, N, C, E].
        decay: Logarithms [B, H, N, C, D or 1].
        beta: Rates [B, H, N, C, 1] of a delta rule.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    beta: Tensor | None


def split(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None, rows: int
) -> Chunks:
    """Returns operands in chunks of `rows` rows, of the dtype of states."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (chunks_of(x.to(wide), rows) for x in (q, k, v))
    if decay is not None:
        decay = chunks_of(decay.to(wide) if decay.ndim == 4 else decay.to(wide).unsqueeze(3), rows)
    if beta is not None:
        beta = chunks_of(beta.to(wide).unsqueeze(3), rows)
    return Chunks(q, k, v, decay, beta)


def chunk_pairs(c: Chunks) -> tuple[Tensor, Tensor | None]:
    """Returns what rows read of each other, and T of a delta rule; [B, H, N, C, C]."""
    read = pair_sums(c.q, c.k, c.decay)
    if c.beta is None:
        return read, None
    alike = pair_sums(c.k, c.k, c.decay) * c.beta
    return read, unit_inverse(alike.masked_fill(~below(alike.shape[-1], alike, True), 0))


def scan(
    c: Chunks, pairs: Tensor, inverse: Tensor | None, state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Returns out [B, H, N * C, E], the last state, the state before each chunk, and all U."""
    f = factors_of(c.decay, c.q)
    B, H, N, _, D = c.k.shape
    S = c.k.new_zeros((B, H, D, c.v.shape[4])) if state is None else state.to(c.k.dtype)
    read, kept = c.q * f.since, (c.k * f.until).transpose(-1, -2)
    seen, whole = c.k * f.since, f.whole.transpose(-1, -2).expand(B, H, N, -1, 1)
    rows, states, written = [], [], []
    for n in range(N):
        states.append(S)
        u = c.v[:, :, n]
        if c.beta is not None and inverse is not None:
            u = inverse[:, :, n] @ (c.beta[:, :, n] * (u - seen[:, :, n] @ S))
        written.append(u)
        rows.append((pairs[:, :, n] @ u + read[:, :, n] @ S) * scale)
        S = S * whole[:, :, n] + kept[:, :, n] @ u
    if not rows:
        return c.v.reshape(B, H, 0, c.v.shape[4]), S.clone(), [], []
    return torch.cat(rows, 2), S, states, written


def read_back(
    c: Chunks, pairs: Tensor, inverse: Tensor | None, dout: Tensor, dfinal: Tensor | None,
    scale: float,
) -> tuple[list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    """Returns gradients by T^-1 U per chunk, by the state after each, and by the first state.

    dout is [B, H, N, C, E].
    """
    f = factors_of(c.decay, c.q)
    B, H, N, _, D = c.k.shape
    dS = c.k.new_zeros((B, H, D, c.v.shape[4])) if dfinal is None else dfinal.to(c.k.dtype)
    read, kept = (c.q * f.since).transpose(-1, -2), c.k * f.until
    seen, whole = (
        (c.k * f.since).transpose(-1, -2),
        f.whole.transpose(-1, -2).expand(B, H, N, -1, 1),
    )
    made, after = [], []
    for n in reversed(range(N)):
        after.append(dS)
        y = pairs[:, :, n].transpose(-1, -2) @ dout[:, :, n] * scale + kept[:, :, n] @ dS
        dS = dS * whole[:, :, n] + read[:, :, n] @ dout[:, :, n] * scale
        if c.beta is not None and inverse is not None:
            y = inverse[:, :, n].transpose(-1, -2) @ y
            dS = dS - seen[:, :, n] @ (c.beta[:, :, n] * y)
        made.append(y)
    return made[::-1], after[::-1], dS


PairGradient = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]]


class RowGradients(NamedTuple):
    """Gradients of chunks: by q and k [B, H, N, C, D], v, decay and beta as `Chunks` has them."""

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    beta: Tensor | None


def row_gradients(
    c: Chunks, dout: Tensor, u: Tensor, y: Tensor, states: Tensor, after: Tensor, scale: float,
    pair_gradient: PairGradient,
) -> RowGradients:  # fmt: skip
    """Returns all gradients but the first state's.

    Args:
        c: The operands.
        dout: [B, H, N, C, E].
        u: What rows wrote.
        y: The first result of `read_back`.
        states: States before chunks [B, H, N, D, E], of the dtype of products.
        after: Gradients by the states after them.
        scale: Factor of out.
        pair_gradient: `pair_sums_gradient`, or what launches a kernel for it.
    """
    f, kind, wide = factors_of(c.decay, c.q), states.dtype, c.q.dtype
    u, y, dout = (x.to(kind) for x in (u, y, dout))
    written, before = u.transpose(-1, -2), states.transpose(-1, -2)
    hidden = ~below(c.q.shape[3], u, strict=True)
    pairs = (dout @ written * scale).to(wide)
    own = pairs.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    # a row reads itself without a factor
    dq, dk = pair_gradient(pairs.masked_fill(hidden, 0), c.q, c.k, c.decay)
    through = (dout @ before).to(wide) * scale * f.since
    kept = (u @ after.transpose(-1, -2)).to(wide) * f.until
    reads, writes = c.q * (dq + through), c.k * (dk + kept)
    dbeta = None
    dv = y.to(wide)
    into = kept + dk + own * c.q
    if c.beta is not None:
        alike = (-(y @ written)).to(wide).masked_fill(hidden, 0)
        seen = (y @ before).to(wide) * f.since
        by_row, by_column = pair_gradient(alike, c.k * c.beta, c.k, c.decay)
        dbeta = (dv * c.v).sum(-1, keepdim=True) + (c.k * (by_row - seen)).sum(-1, keepdim=True)
        rated = c.beta * (by_row - seen)
        reads, writes = reads + c.k * rated, writes + c.k * by_column
        into = into + rated + by_column
        dv = c.beta * dv
    ddecay = None
    if c.decay is not None:
        # g_t is in what rows from t on read of those before it and of the state, and in what
        # those before it leave: all they leave, less what those from t on do
        left = (states.to(wide) * after.to(wide)).sum(-1).unsqueeze(-2) * f.whole
        left = left + (c.k * kept).sum(-2, keepdim=True)
        ddecay = (reads - writes).flip(-2).cumsum(-2).flip(-2) + left
        if c.decay.shape[-1] == 1:
            ddecay = ddecay.sum(-1, keepdim=True)
    return RowGradients(dq + through + own * c.k, into, dv, ddecay, dbeta)
