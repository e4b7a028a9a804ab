"""Linear attention: feature maps, normalizers, and the recurrence in chunks of positions."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
CHUNK_PER_CHANNEL = 16
CHUNK_DELTA = 32


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    scale: float,
    kv_groups: int,
    feature_map: str = "none",
    normalizer: str = "none",
    causal: bool = True,
    epsilon: float = 0.0,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """Returns (out [B, H * kv_groups, S, E], state); see ONNX LinearAttention-27.

    Args:
        q: Queries [B, H * kv_groups, S, D]; S is T where causal.
        k: Keys [B, H, T, D].
        v: Values [B, H, T, E].
        state: [B, H, features, E], one column more with the normalizer `sum`; None: zeros.
        decay: Logarithms of factors of the state, broadcast to [B, H, T, D].
        beta: Rates of delta rules, broadcast to [B, H, T, 1].
        scale: Factor of the products.
        kv_groups: Query heads per key head.
        feature_map: What q and k go through.
        normalizer: `none`, `sum` or `mean`.
        causal: Whether a query reads the positions up to its own only.
        epsilon: Joins the sum.
        chunk_size: Positions at once; 0: as suits.
    """
    kind = q.dtype
    wide = torch.promote_types(q.dtype, torch.float32)  # the state accumulates rounding
    state_kind = kind if state is None else state.dtype
    q, k, v = feature(q, feature_map).to(wide), feature(k, feature_map).to(wide), v.to(wide)
    if normalizer == "sum":
        v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    B, H, T, D = k.shape
    queries = q.reshape(B, H, kv_groups, q.shape[2], D)
    S = k.new_zeros((B, H, D, v.shape[3])) if state is None else state.to(wide)
    if causal:
        decay = None if decay is None else decay.to(wide)
        rates = None if beta is None else beta.to(wide)
        out, S = in_chunks(queries, k, v, S, decay, rates, chunk_size)
        out = out * scale
    else:
        S = S + k.transpose(-1, -2) @ v
        out = (queries * scale) @ S.unsqueeze(2)
        if normalizer == "mean":
            mean = k.mean(2, keepdim=True).unsqueeze(2)
            rest = 1 - (queries * scale) @ mean.transpose(-1, -2)
            out = out / T + rest * v.mean(2, keepdim=True).unsqueeze(2)
    if normalizer == "sum":
        out = out[..., :-1] / (out[..., -1:] + epsilon)
    return out.reshape(B, H * kv_groups, *out.shape[3:]).to(kind), S.to(state_kind)


def feature(x: Tensor, name: str) -> Tensor:
    """Returns the features of x along its last axis."""
    if name == "relu":
        return x.relu()
    if name == "elu":
        return torch.nn.functional.elu(x) + 1
    if name == "exp":
        return x.exp()
    if name == "softmax":
        return x.softmax(-1)
    if name == "hedgehog":
        return torch.cat((x.softmax(-1), (-x).softmax(-1)), -1)
    if name == "taylor":
        squares = (x.unsqueeze(-1) * 2**-0.5) * x.unsqueeze(-2)
        return torch.cat((torch.ones_like(x[..., :1]), x, squares.flatten(-2)), -1)
    return x


def in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Returns out [B, H, G, T, E] and the last state; q is [B, H, G, T, D]."""
    T = k.shape[2]
    per_channel = decay is not None and decay.shape[3] != 1
    usual = CHUNK_PER_CHANNEL if per_channel else CHUNK if beta is None else CHUNK_DELTA
    size = chunk_size or usual
    if per_channel and beta is not None:
        size = 1
    if decay is not None:
        decay = decay.expand(*k.shape[:3], decay.shape[3])
    rows = []
    for start in range(0, T, size):
        span = slice(start, start + size)
        gate = None if decay is None else decay[:, :, span]
        rate = None if beta is None else beta[:, :, span]
        out, S = one_chunk(q[:, :, :, span], k[:, :, span], v[:, :, span], S, gate, rate)
        rows.append(out)
    if not rows:
        return q.new_zeros((*q.shape[:4], v.shape[3])), S
    return torch.cat(rows, 3), S


def one_chunk(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns what the queries of one chunk read, and the state after it."""
    C = k.shape[2]
    below = torch.ones((C, C), dtype=torch.bool, device=k.device).tril()
    keys = k.transpose(-1, -2)
    hold, read, gate = k, q, None
    factors: Tensor | None = None
    if decay is not None:
        sums = decay.cumsum(2)  # [B, H, C, D or 1]
        apart = sums.unsqueeze(3) - sums.unsqueeze(2)
        # exponents above the diagonal are positive and could overflow
        factors = apart.masked_fill(~below.unsqueeze(-1), -torch.inf).exp()
        gate = sums[:, :, -1:]
        hold = k * (gate - sums).exp()
        read = q * sums.exp().unsqueeze(2)
    if factors is not None and factors.shape[4] != 1:
        weighed = factors * k.unsqueeze(2)  # of [i, j, d]: k[j, d] exp(…)
        within = torch.einsum("bhgid,bhijd->bhgij", q, weighed)
    else:
        within = q @ keys.unsqueeze(2)
        scalars = None if factors is None else factors.squeeze(4).unsqueeze(2)
        within = within.masked_fill(~below, 0) if scalars is None else within * scalars
    new = v
    if beta is not None:
        seen = k if decay is None else k * decay.cumsum(2).exp()
        alike = (k * beta) @ keys
        if factors is not None and factors.shape[4] == 1:
            alike = alike * factors.squeeze(4)
        eye = torch.eye(C, dtype=k.dtype, device=k.device)
        wanted = beta * (v - seen @ S)
        new = torch.linalg.solve_triangular(alike.tril(-1) + eye, wanted, upper=False)
    out = within @ new.unsqueeze(2) + read @ S.unsqueeze(2)
    kept = S if gate is None else S * gate.exp().transpose(-1, -2)
    return out, kept + hold.transpose(-1, -2) @ new
