"""Causal linear attention as a function that differentiates, maps, quotients and states included.

Two operators run one kernel: attention, and its gradients by features and values. What features
were made of has its gradient by a kernel of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.backends.triton.kernels.linear_attention import (
    launch_chunks,
    linear_attention_kernel,
    over_pairs,
    state_width,
)
from regraft.backends.triton.kernels.linear_attention_step import launch_step
from regraft.backends.triton.kernels.linear_features import (
    LINEAR_FEATURES,
    feature_gradient,
    features_of,
    num_features,
)
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_broadcast,
    check_choice,
    check_operands,
    in_autocast,
)
from regraft.backends.triton.kernels.operators import operator


def reference_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, scale: float,
    epsilon: float, feature_map: str, normalize: bool, precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns out [B, H, T, E], the last state [B, H, D, E], and the sums of rows [B, H, T].

    D are features. With `normalize` the state has a column more, and rows are divided by the sums;
    its rows are filled up with zeros to `state_width`.
    """
    kind, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k = (features_of(x.to(wide), feature_map) for x in (q, k))
    v = v.to(wide)
    if normalize:
        v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    out, last = over_pairs(q, k, v, decay, state, False, False)
    out = out * scale
    if not normalize:
        return out.to(kind), last, q.new_empty(0)
    sums = out[..., -1] + epsilon
    last = torch.nn.functional.pad(last, (0, state_width(v.shape[3] - 1, True) - v.shape[3]))
    return (out[..., :-1] / sums.unsqueeze(-1)).to(kind), last, sums


def _allocate_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, scale: float,
    epsilon: float, feature_map: str, normalize: bool, precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(q.dtype, torch.float32)
    B, H, T, D = q.shape
    E = v.shape[3]
    out = torch.empty((B, H, T, E), dtype=q.dtype, device=q.device)
    shape = (B, H, num_features(D, feature_map), state_width(E, normalize))
    final = torch.empty(shape, dtype=wide, device=q.device)
    sums = torch.empty((B, H, T) if normalize else (0,), dtype=wide, device=q.device)
    return out, final, sums


def _launch_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, scale: float,
    epsilon: float, feature_map: str, normalize: bool, precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    results = _allocate_linear_attention(
        q, k, v, decay, state, scale, epsilon, feature_map, normalize, precision
    )
    if 0 in (q.shape[0], q.shape[1], q.shape[3], v.shape[3]):
        return results[0].zero_(), results[1].zero_(), results[2].fill_(epsilon)
    if q.shape[2] == 1:
        launch_step(q, k, v, decay, state, results, scale, epsilon, feature_map, normalize)
        return results
    launch_chunks(
        q, k, v, decay, state, None, None, results, scale, epsilon, feature_map, normalize,
        "forward", False, precision,
    )  # fmt: skip
    return results


linear_attention_forward = operator(
    "linear_attention",
    _launch_linear_attention,
    allocate=_allocate_linear_attention,
    reference=reference_linear_attention,
    kernel=linear_attention_kernel,
)


def reference_linear_attention_gradient(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None,
    factor: Tensor | None, offset: Tensor | None, scale: float, feature_map: str, form: str,
    strict: bool, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the gradient by features of queries or keys, or by values, and that by a state.

    q, k and v are (dout, v, k) of the form `queries`, (v, dout, q) of `keys` and (k, q, dout) of
    `values`; see `launch_chunks`.
    """
    kind, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(wide) for x in (q, k, v))
    width = v.shape[3] if form == "values" else num_features(v.shape[3], feature_map)
    if factor is not None and offset is not None:

        def divided(x: Tensor) -> Tensor:
            return torch.cat((x, -offset.unsqueeze(-1)), -1) * factor.unsqueeze(-1)

        def counted(x: Tensor) -> Tensor:
            return torch.cat((x, torch.ones_like(x[..., :1])), -1)

        match form:
            case "queries":
                q, k = divided(q), counted(k)
            case "keys":
                q, k = counted(q), divided(k)
            case _:
                v = divided(v)
    if form == "values":
        q, k = features_of(q, feature_map), features_of(k, feature_map)
    else:
        v = features_of(v, feature_map)
    out, last = over_pairs(q, k, v, decay, state, form != "queries", strict)
    return (out[..., :width] * scale).to(kind), last


def _allocate_linear_attention_gradient(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None,
    factor: Tensor | None, offset: Tensor | None, scale: float, feature_map: str, form: str,
    strict: bool, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(q.dtype, torch.float32)
    B, H, T, rows = q.shape
    width, extra = v.shape[3], int(factor is not None)
    shape = (B, H, rows + extra, num_features(width, feature_map))
    if form == "values":
        shape = (B, H, num_features(rows, feature_map), width + extra)
    else:
        width = num_features(width, feature_map)
    out = torch.empty((B, H, T, width), dtype=q.dtype, device=q.device)
    return out, torch.empty(shape, dtype=wide, device=q.device)


def _launch_linear_attention_gradient(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None,
    factor: Tensor | None, offset: Tensor | None, scale: float, feature_map: str, form: str,
    strict: bool, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, final = _allocate_linear_attention_gradient(
        q, k, v, decay, state, factor, offset, scale, feature_map, form, strict, precision
    )
    if final.numel() == 0 or 0 in (q.shape[3], v.shape[3]):
        return out.zero_(), final.zero_()
    launch_chunks(
        q, k, v, decay, state, factor, offset, (out, final, final), scale, 0.0, feature_map,
        factor is not None, form, strict, precision,
    )  # fmt: skip
    return out, final


linear_attention_gradient = operator(
    "linear_attention_gradient",
    _launch_linear_attention_gradient,
    allocate=_allocate_linear_attention_gradient,
    reference=reference_linear_attention_gradient,
    kernel=linear_attention_kernel,
)


def _keep_linear_attention(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    *tensors, scale, _, feature_map, normalize, precision = inputs
    ctx.set_materialize_grads(False)
    out, final, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(*tensors, out, final, sums)
    ctx.settings = (scale, feature_map, normalize, precision)


def _differentiate_linear_attention(
    ctx: Any, dout: Tensor | None, dfinal: Tensor | None, dsums: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, decay, state, out, final, sums = ctx.saved_tensors
    scale, feature_map, normalize, precision = ctx.settings
    wide, ddecay, dstate, own = final.dtype, None, None, None
    if dout is None:
        dout = torch.zeros_like(out)
    factor = offset = None
    width = v.shape[3] + int(normalize)
    final, dfinal = final[..., :width], None if dfinal is None else dfinal[..., :width]
    if normalize:
        factor, offset = 1 / sums, (dout.to(wide) * out).sum(-1)
    before = None if state is None else state.transpose(2, 3)
    after = None if dfinal is None else dfinal / scale  # states are read times the scale
    across = None if after is None else after.transpose(2, 3)
    strict = decay is not None and ctx.needs_input_grad[3]

    def run(a: Tensor, b: Tensor, c: Tensor, start: Tensor | None, form: str) -> Any:
        return linear_attention_gradient(
            a, b, c, decay, start, factor, offset, scale, feature_map, form,
            strict and form != "values", precision,
        )  # fmt: skip

    dq, dk = run(dout, v, k, before, "queries")[0], run(v, dout, q, across, "keys")[0]
    dv, first = run(k, q, dout, after, "values")
    if strict:
        # what a row reads of itself
        own = (dout.to(wide) * v).sum(-1)
        own = (own if offset is None else (own - offset) * factor) * scale
    dots: list[Tensor] = []
    if strict or feature_map != "none":
        dq, read = feature_gradient(q, k, dq, own, feature_map)
        dk, kept = feature_gradient(k, q, dk, own, feature_map)
        dots = [read, kept]
    if strict:
        # g_t is in the sums from t on of what rows read before, less what is read of them after;
        # what a row reads of itself is in neither, and would not cancel to the last digit
        total = (dots[0] - dots[1]).flip(-1).cumsum(-1).flip(-1)
        if dfinal is not None:
            total = total + (dfinal * final).sum((-1, -2))[..., None]
        ddecay = total.to(decay.dtype)
    if state is not None and ctx.needs_input_grad[4]:
        dstate = first * scale
        if decay is not None and decay.shape[2]:
            dstate = dstate * torch.exp(decay[..., :1, None].to(wide))
        dstate = dstate.to(state.dtype)
    return dq, dk, dv, ddecay, dstate, None, None, None, None, None


linear_attention_forward.register_autograd(
    _differentiate_linear_attention, setup_context=_keep_linear_attention
)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    scale: float = 1.0,
    feature_map: str = "none",
    normalize: bool = False,
    epsilon: float = 0.0,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Returns causal linear attention [B, H, T, E], and the state [B, G, D, E] in f32 after it.

    One token is a step of decoding: T = 1 with the state of the step before. Hand that on as it is:
    a copy has rows that 16 does not divide, which are read by narrower accesses. D are features:
    the channels of q and k, twice as many of `hedgehog`.

    Args:
        q: Queries [B, H, T, channels] before their feature map, of any strides.
        k: Keys [B, G, T, channels] before theirs; G divides H.
        v: Values [B, G, T, E].
        decay: Logarithms of the factors of the state, broadcast to [B, G, T], at most 0.
        state: The state before the first token.
        scale: Factor of the products.
        feature_map: What q and k go through: one of `LINEAR_FEATURES`.
        normalize: Whether a row is divided by its sum of products plus `epsilon`: the state's last
            column, one more than v has.
        epsilon: See `normalize`.
        precision: Of products of f32, as `tl.dot` has it.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Heads do not divide, sizes differ, or there is no such map.
    """
    is_ranked = q.ndim == k.ndim == v.ndim == 4 and k.shape[1] > 0
    if not is_ranked or (
        q.shape[1] % k.shape[1]
        or k.shape[:3] != v.shape[:3]
        or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:])
    ):
        raise ValueError(
            f"linear_attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; expected "
            "[B, H, T, D], [B, G, T, D], [B, G, T, E] where G divides H"
        )
    if feature_map not in LINEAR_FEATURES:
        raise ValueError(
            f"linear_attention: feature map `{feature_map}` is not one of "
            f"{', '.join(LINEAR_FEATURES)}"
        )
    q, k, v = in_autocast(q, k, v)
    sizes = (*k.shape[:2], num_features(k.shape[3], feature_map), v.shape[3] + int(normalize))
    check_operands(
        "linear_attention", ("decay", "state"), q=(q, None), k=(k, None), v=(v, None),
        decay=(decay, None), state=(state, sizes),
    )  # fmt: skip
    check_broadcast("linear_attention", "decay", decay, k.shape[:3], q)
    check_choice("linear_attention", "precision", precision, PRECISIONS)
    decay = None if decay is None else decay.expand(k.shape[:3])
    group = q.shape[1] // k.shape[1]
    k, v, decay, state = (
        x if x is None or group == 1 else x.repeat_interleave(group, 1)
        for x in (k, v, decay, state)
    )
    out, final, _ = linear_attention_forward(
        q, k, v, decay, state, scale, epsilon, feature_map, normalize, precision
    )
    final = final[..., : v.shape[3] + int(normalize)]
    return out, final if group == 1 else final[:, ::group]
