"""Linear attention as a recurrence."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    scale: float,
    kv_groups: int,
) -> tuple[Tensor, Tensor]:
    """Returns (out [B, H * kv_groups, T, E], state [B, H, D, E]); see ONNX LinearAttention-27."""
    B, H, T, D = k.shape
    wide = torch.promote_types(q.dtype, torch.float32)  # the state accumulates rounding
    kind = q.dtype if state is None else state.dtype
    if state is None:
        S = torch.zeros((B, H, D, v.shape[3]), dtype=wide, device=q.device)
    else:
        S = state.to(wide)
    queries = q.reshape(B, H, kv_groups, T, D).to(wide)
    keys, values = k.to(wide), v.to(wide)
    factors = None if decay is None else decay.to(wide).exp()
    rates = None if beta is None else beta.to(wide)
    rows = []
    for t in range(T):
        key, value = keys[:, :, t].unsqueeze(-1), values[:, :, t].unsqueeze(-2)
        if factors is not None:
            S = S * factors[:, :, t].unsqueeze(-1)
        if rates is not None:
            value = rates[:, :, t].unsqueeze(-1) * (value - key.transpose(-1, -2) @ S)
        S = S + key * value
        rows.append(queries[:, :, :, t] @ S)
    out = torch.stack(rows, 3).reshape(B, H * kv_groups, T, v.shape[3]) * scale
    return out.to(q.dtype), S.to(kind)
