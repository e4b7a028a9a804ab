"""Score modifiers and normalizers of attention; see the operator's meaning in the IR."""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = -9000.0
ROOT_STEPS = 24


def attend_with(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    normalizer: str,
    parameters: tuple[float, ...] = (),
    modifier: str = "none",
    budget: float = 0.0,
    visible: Tensor | None = None,
    sinks: Tensor | None = None,
    alpha: Tensor | None = None,
    gates: Tensor | None = None,
    offset: int | Tensor = 0,
    softcap: float = 0.0,
    mask_first: bool = False,
    softmax_dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns attention of q [B, H, S, D] to k, v [B, H / groups, T, D]; no key gives zeros.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: bool (False hides) or float (added), broadcast to [B, H, S, T].
        scale: Factor of the products.
        normalizer: What makes weights of scores.
        parameters: Its parameters in order.
        modifier: What changes scores before.
        budget: Keys that earlier queries passed over by more than this are hidden; 0: none.
        visible: Keys that positions leave visible.
        sinks: [H], a further score per head that takes weight but has no value.
        alpha: [H], of entmax.
        gates: [B, H, S], factors of the distance.
        offset: Key position of the first query; one, or one per batch row.
        softcap: Scores become softcap * tanh(score / softcap).
        mask_first: A float mask is added before the soft cap.
        softmax_dtype: Element type of scores and weights; None: that of q.
    """
    B, H, S, _ = q.shape
    heads, T = k.shape[1], k.shape[2]
    grouped = q.reshape(B, heads, H // heads * S, q.shape[3])
    x = ((grouped * scale) @ k.transpose(-1, -2)).reshape(B, H, S, T)
    shown = torch.ones((1, 1, S, T), dtype=torch.bool, device=q.device)
    if visible is not None:
        shown = shown & visible
    if mask is not None and mask.dtype == torch.bool:
        shown = shown & mask
    elif mask is not None:
        is_plain = normalizer in ("softmax", "two_pass") and modifier == "none"
        above = mask > (-torch.inf if is_plain else HIDDEN)
        shown = shown & above
        mask = torch.where(above, mask, 0)
        x = x + mask if mask_first else x
    if softcap > 0:
        x = softcap * torch.tanh(x / softcap)
    if mask is not None and mask.dtype != torch.bool and not mask_first:
        x = x + mask
    x = x.to(softmax_dtype or q.dtype)
    if modifier == "selective":
        x, shown = pass_over(x, shown, offset, budget)
    elif modifier == "threshold" and gates is not None:
        shown = shown & (x > 0)
        staying = shown.to(x.dtype)
        after = staying.flip(3).cumsum(3).flip(3) - staying
        x = x + gates.to(x.dtype).unsqueeze(3) * after
    shown = shown.expand(B, H, S, T)
    weights = normalized(x, shown, normalizer, parameters, sinks, alpha)
    weights = torch.where(shown, weights, 0).to(q.dtype)
    out = weights.reshape(B, heads, H // heads * S, T) @ v
    return out.reshape(B, H, S, v.shape[3])


def pass_over(
    x: Tensor, shown: Tensor, offset: int | Tensor, budget: float
) -> tuple[Tensor, Tensor]:
    """Returns scores less what earlier queries chose by the first head, and visible keys."""
    S, T = x.shape[2], x.shape[3]
    keys = torch.arange(T, device=x.device)
    rows = torch.arange(S, device=x.device).unsqueeze(1)
    rows = rows + (offset.reshape(-1, 1, 1, 1) if isinstance(offset, Tensor) else offset)
    chosen = torch.where(shown[:, :1], x[:, :1].relu(), 0)
    chosen = torch.where((keys == 0) | (keys == rows), 0, chosen)
    passed = chosen.cumsum(2) - chosen
    if budget > 0:
        shown = shown & (passed <= budget)
    return x - passed, shown


def normalized(
    x: Tensor,
    shown: Tensor,
    normalizer: str,
    parameters: tuple[float, ...],
    sinks: Tensor | None = None,
    alpha: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Returns the weights of scores x where `shown`; what it gives elsewhere has no meaning."""
    if sinks is not None and normalizer in ("stablemax", "softplus", "entmax"):
        B, H, S, T = x.shape
        column = sinks.to(x.dtype).reshape(1, H, 1, 1).expand(B, H, S, 1)
        joined = torch.cat((x, column), -1)
        more = torch.cat((shown, torch.ones_like(shown[..., :1])), -1)
        count = shown.sum(-1, keepdim=True)
        return normalized(joined, more, normalizer, parameters, None, alpha, count)[..., :T]
    if normalizer == "stablemax":
        # 1 / (1 - x) is computed for no positive x: its gradient would be NaN at 1
        return shared(torch.where(shown, x.relu() + 1 / (1 - x.clamp(max=0)), 0))
    if normalizer == "softplus":
        power, least = (*parameters, *(0.0, 1.0)[len(parameters) :])
        weights = shared(torch.where(shown, torch.nn.functional.softplus(x), 0))
        if power <= 0:
            return weights
        count = (shown.sum(-1, keepdim=True) if count is None else count).to(x.dtype)
        sharp = torch.where(shown, count * weights - torch.where(count <= 3, 0.0, least), 0).relu()
        top = sharp.amax(-1, keepdim=True).detach()
        return shared((sharp / torch.where(top == 0, 1, top)) ** power)
    if normalizer == "entmax":
        return entmax(x, shown, (*parameters, 1.5)[0] if alpha is None else alpha)
    if normalizer == "top_k":
        k = min(int((*parameters, 1.0)[0]), x.shape[3])
        best = x.detach().masked_fill(~shown, -torch.inf).topk(k, -1).values
        shown = shown & (x >= best[..., -1:])
    weights = softmax_of_shown(x, shown, sinks)
    if normalizer == "clipped":
        gamma, zeta, share = (*parameters, *(0.0, 1.0, 0.0)[len(parameters) :])
        low = gamma - share / shown.sum(-1, keepdim=True).clamp(min=1).to(x.dtype)
        weights = ((zeta - low) * weights + low).clamp(0, 1)
    return weights


def softmax_of_shown(x: Tensor, shown: Tensor, sinks: Tensor | None) -> Tensor:
    """Returns the softmax over visible keys; sinks [H] join the sum."""
    B, H, S, T = x.shape
    # the lowest number, not -inf: a row without keys has a softmax with a gradient
    scores = x.masked_fill(~shown, torch.finfo(x.dtype).min)
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(x.dtype).reshape(1, H, 1, 1).expand(B, H, S, 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :T]


def shared(x: Tensor) -> Tensor:
    """Returns x over its sum; a row of zeros stays."""
    total = x.sum(-1, keepdim=True)
    return x / torch.where(total == 0, 1, total)


def entmax(x: Tensor, shown: Tensor, alpha: float | Tensor) -> Tensor:
    """Returns [(alpha - 1) x - tau]_+ ^ (1 / (alpha - 1)); alpha one number, or [H].

    tau comes from Halley's steps without a gradient; a last Newton step has the gradient of the
    equation that tau solves.
    """
    if not isinstance(alpha, Tensor) and alpha == 1:
        return softmax_of_shown(x, shown, None)
    slope = torch.as_tensor(alpha, dtype=x.dtype, device=x.device) - 1
    slope = slope.reshape(1, -1, 1, 1) if slope.dim() else slope
    top = x.masked_fill(~shown, torch.finfo(x.dtype).min).amax(-1, keepdim=True)
    z = torch.where(shown, (x - top.detach()) * slope, -1.0)
    power = 1 / slope
    with torch.no_grad():
        tau = entmax_threshold(z, shown, slope)
    inside = (z > tau) & shown
    base = torch.where(inside, z - tau, 1)
    total = torch.where(inside, base**power, 0).sum(-1, keepdim=True)
    falling = torch.where(inside, power * base ** (power - 1), 0).sum(-1, keepdim=True).detach()
    tau = tau + (total - 1) / torch.where(falling == 0, 1, falling)
    above = torch.where(inside, z - tau, 1).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(inside, above**power, 0)


def entmax_threshold(z: Tensor, shown: Tensor, slope: Tensor) -> Tensor:
    """Returns tau by Halley's steps, halving the bracket where they leave it."""
    power = 1 / slope
    count = shown.sum(-1, keepdim=True).clamp(min=1)
    high = -(count.to(z.dtype) ** -slope)
    low = torch.full_like(high, -1.0)
    tau = (low + high) / 2
    for _ in range(ROOT_STEPS):
        inside = (z > tau) & shown
        base = torch.where(inside, z - tau, 1)
        f = torch.where(inside, base**power, 0).sum(-1, keepdim=True) - 1
        first = -power * torch.where(inside, base ** (power - 1), 0).sum(-1, keepdim=True)
        second = torch.where(inside, base ** (power - 2), 0).sum(-1, keepdim=True)
        second = power * (power - 1) * second
        low, high = torch.where(f >= 0, tau, low), torch.where(f >= 0, high, tau)
        step = 2 * f * first / (2 * first * first - f * second)
        fits = (tau - step >= low) & (tau - step <= high)
        tau = torch.where(fits, tau - step, (low + high) / 2)
    return tau
