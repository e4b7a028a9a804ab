"""How tokens and experts find each other: the routing of the operator `moe`, in numpy and in body.

Tokens choose (`select`): the `top_k` best experts of each; of these, those before which less than
`threshold` of the probability lies (`top_p`), or whose score is at least `threshold` (`threshold`),
the first in any case. With `groups`, experts stand in groups, and only those of the `top_groups`
best are asked; a group is as good as the sum of its `group_best` best. With a `capacity` c, an
expert takes `ceil(c * tokens * top_k / experts)` of those that choose it: first choices before
second ones, then in order of the tokens. Experts choose (`expert_choice`): each takes that many
tokens, its best ones, the lower token where scores are equal. A token that nobody takes has weight
zero everywhere.

Source: Fedus et al., Switch Transformers, 2021, section 2.2 (capacity); Yang et al., Enhancing
Efficiency in Sparse Models with Sparser Selection, 2024, eq. 5 (`top_p`); Zhou et al.,
Mixture-of-Experts with Expert Choice Routing, 2022, section 3.2; Pei et al., CMoE, 2025, eq. 9
(`weight_gain`); DeepSeek-V2, 2024, section 2.1.3, and DeepSeek-V3, 2024, section 2.1.2 (`groups`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, floordiv, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    cast,
    cumulative,
    logical,
    reduce,
    reshaping,
    scattering,
    selecting,
    softmax,
)
from regraft.ir.types import DType

Array = np.ndarray[Any, Any]

SCORINGS = ("softmax", "topk_softmax", "sigmoid", "given")
SELECTIONS = ("top_k", "top_p", "threshold", "expert_choice", "groups")


def check_routing(node: Node) -> None:
    """Raises the node's error where attributes do not go together."""
    attrs = node.attrs
    for name, options in (("scoring", SCORINGS), ("select", SELECTIONS)):
        if attrs[name] not in options:
            raise node.error(f"`{name}` is `{attrs[name]}`", hint=f"one of {', '.join(options)}")
    select, scoring, capacity = attrs["select"], attrs["scoring"], attrs["capacity"]
    if scoring == "given":
        if attrs["renormalize"] or any(value is not None for value in node.inputs[8:10]):
            raise node.error("given weights are neither renormalized nor chosen by a bias")
        if select != "top_k" or capacity:
            raise node.error("given weights say who is chosen", hint="select=top_k, capacity=0")
        return
    if select == "top_p" and scoring != "softmax":
        raise node.error(f"`top_p` sums probabilities, `scoring` is `{scoring}`")
    if select == "groups":
        _check_groups(node)
    elif select != "top_k" and scoring == "topk_softmax":
        raise node.error(f"`{select}` needs scores before the choice", hint="scoring=softmax")
    if select in ("top_p", "threshold") and not attrs["threshold"] > 0:
        raise node.error(f"`threshold` is {attrs['threshold']:g}, it has to be positive")
    if capacity < 0 or (select == "expert_choice" and capacity == 0):
        raise node.error(f"`capacity` is {capacity:g} with `{select}`", hint="1 takes all on mean")


def _check_groups(node: Node) -> None:
    attrs, scores = node.attrs, node.inputs[1]
    groups, asked, best = (attrs[name] for name in ("groups", "top_groups", "group_best"))
    count = None if scores is None or scores.shape is None else scores.shape[-1]
    if not 0 < asked <= groups or best < 1:
        raise node.error(f"{asked} of {groups} groups are asked, by their best {best}")
    if not isinstance(count, int):
        return
    size = count // groups
    if count % groups or best > size or attrs["top_k"] > asked * size:
        raise node.error(
            f"{count} experts in {groups} groups, of which {asked} are asked for {attrs['top_k']}",
            hint="groups of equal size that hold all chosen experts",
        )


def mixes_tokens(attrs: Mapping[str, Any]) -> bool:
    """Returns whether what becomes of a token depends on the others."""
    return bool(attrs["capacity"] > 0 or attrs["select"] == "expert_choice")


def route(
    attrs: Mapping[str, Any], router: Array, bias: Array | None = None, gain: Array | None = None
) -> tuple[Array, Array]:
    """Returns who computes what: bool[tokens, E], and weights f[tokens, E], zero elsewhere.

    Args:
        attrs: Of the operator.
        router: f[tokens, E].
        bias: f[E], chooses but does not weigh.
        gain: f[E]: weights are 1 + gain * weight.
    """
    match attrs["scoring"]:
        case "given":
            return router != 0, router * attrs["routed_scale"]
        case "sigmoid":
            scores = 1 / (1 + np.exp(-router))
        case "softmax":
            scores = softmax.stable_softmax(router)
        case _:
            scores = router
    ranked = scores if bias is None else scores + bias
    if attrs["select"] == "groups":
        ranked = _of_best_groups(attrs, ranked)
    if attrs["select"] == "expert_choice":
        taken = _experts_choose(attrs, ranked)
        weights = np.where(taken, scores, 0)
        if attrs["renormalize"]:
            total = weights.sum(-1, keepdims=True)
            weights = weights / np.where(total == 0, 1, total)
    else:
        taken, weights = _tokens_choose(attrs, scores, ranked)
    if gain is not None:
        weights = 1 + gain * weights
    weights = np.where(taken, weights, 0) * attrs["routed_scale"]
    return taken, weights.astype(router.dtype)


def _tokens_choose(attrs: Mapping[str, Any], scores: Array, ranked: Array) -> tuple[Array, Array]:
    num_tokens, num_experts = scores.shape
    chosen = np.argsort(-ranked, axis=-1, kind="stable")[:, : attrs["top_k"]]
    weights = np.take_along_axis(scores, chosen, axis=-1)
    keep = np.ones(chosen.shape, bool)
    if attrs["select"] == "top_p" and attrs["threshold"] < 1:
        keep[:, 1:] = np.cumsum(weights, -1)[:, :-1] < attrs["threshold"]
    elif attrs["select"] == "threshold":
        keep[:, 1:] = weights[:, 1:] >= attrs["threshold"]
    if attrs["scoring"] == "topk_softmax":
        weights = softmax.stable_softmax(weights)
    weights = np.where(keep, weights, 0)
    if attrs["renormalize"]:
        weights = weights / weights.sum(-1, keepdims=True)
    if attrs["capacity"] > 0:
        asked = np.zeros((attrs["top_k"], num_tokens, num_experts), np.float64)
        np.put_along_axis(asked, chosen.T[..., None], keep.T[..., None], -1)
        flat = asked.reshape(-1, num_experts)
        before = np.cumsum(flat, 0) - flat
        fits = num_experts * before < attrs["capacity"] * chosen.size
        keep &= np.take_along_axis(fits.reshape(asked.shape), chosen.T[..., None], -1)[..., 0].T
    taken = np.zeros(scores.shape, bool)
    np.put_along_axis(taken, chosen, keep, -1)
    dense = np.zeros(scores.shape, weights.dtype)
    np.put_along_axis(dense, chosen, weights, -1)
    return taken, dense


def _of_best_groups(attrs: Mapping[str, Any], ranked: Array) -> Array:
    """Returns scores [tokens, E], minus infinity in groups that are not asked."""
    parts = ranked.reshape(len(ranked), attrs["groups"], -1)
    best = np.sort(parts, axis=-1)[..., -attrs["group_best"] :].sum(-1)
    order = np.argsort(-best, axis=-1, kind="stable")[:, : attrs["top_groups"]]
    asked = np.zeros(best.shape, bool)
    np.put_along_axis(asked, order, values=True, axis=-1)
    return np.where(asked[..., None], parts, -np.inf).reshape(ranked.shape)


def _experts_choose(attrs: Mapping[str, Any], ranked: Array) -> Array:
    num_tokens, num_experts = ranked.shape
    order = np.argsort(-ranked, axis=0, kind="stable")
    fits = num_experts * np.arange(num_tokens) < attrs["capacity"] * attrs["top_k"] * num_tokens
    taken = np.zeros(ranked.shape, bool)
    np.put_along_axis(taken, order, fits[:, None], 0)
    return taken


def write_routing(
    node: Node, b: Builder, router: Value, bias: Value | None, gain: Value | None
) -> Value:
    """Returns the weight of every expert for every token, [E, tokens, 1]; router [tokens, E]."""
    attrs, dtype = node.attrs, router.dtype
    if dtype is None or router.shape is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    scores = router
    if attrs["scoring"] == "sigmoid":
        scores = b.op(activation.sigmoid, router)
    elif attrs["scoring"] == "softmax":
        scores = b.op(softmax.softmax, router, axis=-1)
    ranked = scores if bias is None else b.op(arithmetic.add, scores, bias)
    if attrs["select"] == "groups":
        ranked = _write_best_groups(node, b, ranked)
    if attrs["scoring"] == "given":
        dense = router
    elif attrs["select"] == "expert_choice":
        dense = _write_experts_choose(node, b, scores, ranked, gain)
    else:
        dense = _write_tokens_choose(node, b, scores, ranked, gain)
    if attrs["routed_scale"] != 1:
        dense = b.op(arithmetic.mul, dense, b.constant(attrs["routed_scale"], dtype))
    return b.op(reshaping.transpose, b.op(reshaping.unsqueeze, dense, axes=(1,)), perm=(2, 0, 1))


def _write_best_groups(node: Node, b: Builder, ranked: Value) -> Value:
    """Returns scores [tokens, E], minus infinity in groups that are not asked."""
    attrs, dtype, shape = node.attrs, ranked.dtype, ranked.shape
    if dtype is None or shape is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    groups = attrs["groups"]
    parts = b.op(reshaping.reshape, ranked, shape=(shape[0], groups, floordiv(shape[1], groups)))
    best, _ = b.multi(selecting.top_k, parts, k=attrs["group_best"], axis=-1)
    total = b.op(reduce.reduce_sum, best, axes=(2,), keepdims=False)
    _, order = b.multi(selecting.top_k, total, k=attrs["top_groups"], axis=-1)
    on_off = b.constant(np.array([0, 1]), dtype)
    each = b.op(selecting.one_hot, order, None, on_off, depth=groups, axis=-1)
    asked = b.op(reduce.reduce_sum, each, axes=(1,), keepdims=False)
    column = b.op(reshaping.unsqueeze, b.op(cast.cast, asked, to=DType.BOOL), axes=(2,))
    kept = b.op(logical.where, column, parts, b.constant(-np.inf, dtype))
    return b.op(reshaping.reshape, kept, shape=shape)


def _gained(b: Builder, weights: Value, gain: Value | None) -> Value:
    if gain is None:
        return weights
    return b.op(arithmetic.add, b.op(arithmetic.mul, weights, gain), b.constant(1.0, weights.dtype))


def _write_tokens_choose(
    node: Node, b: Builder, scores: Value, ranked: Value, gain: Value | None
) -> Value:
    """Returns weights [tokens, E]."""
    attrs, dtype, shape = node.attrs, scores.dtype, scores.shape
    if dtype is None or shape is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    _, chosen = b.multi(selecting.top_k, ranked, k=attrs["top_k"], axis=-1)
    on_off = b.constant(np.array([0, 1]), dtype)
    # [tokens, top_k, E]
    selected = b.op(selecting.one_hot, chosen, None, on_off, depth=shape[1], axis=-1)
    rows = b.op(reshaping.unsqueeze, scores, axes=(1,))
    picked = b.op(arithmetic.mul, selected, rows)
    weights = b.op(reduce.reduce_sum, picked, axes=(2,), keepdims=True)  # [tokens, top_k, 1]
    keep = _write_kept(node, b, weights)
    if attrs["scoring"] == "topk_softmax":
        weights = b.op(softmax.softmax, weights, axis=1)
    if keep is not None:
        weights = b.op(arithmetic.mul, weights, keep)
        selected = b.op(arithmetic.mul, selected, keep)
    if attrs["renormalize"]:
        total = b.op(reduce.reduce_sum, weights, axes=(1,), keepdims=True)
        weights = b.op(arithmetic.div, weights, total)
    if attrs["capacity"] > 0:
        selected = _write_capacity(node, b, selected, product(shape[:1]))
    if gain is None:
        placed = b.op(arithmetic.mul, selected, weights)
    else:
        placed = b.op(arithmetic.mul, selected, _gained(b, weights, gain))
    return b.op(reduce.reduce_sum, placed, axes=(1,), keepdims=False)


def _write_kept(node: Node, b: Builder, weights: Value) -> Value | None:
    """Returns 0 or 1 for every choice of a token, [tokens, top_k, 1]; None where all stay."""
    attrs, dtype = node.attrs, weights.dtype
    threshold = b.constant(attrs["threshold"], dtype)
    if attrs["select"] == "top_p" and attrs["threshold"] < 1:
        before = b.op(cumulative.cumsum, weights, axis=1, exclusive=True)
        kept = b.op(logical.less, before, threshold)  # the first has nothing before it
    elif attrs["select"] == "threshold":
        first = np.zeros((1, attrs["top_k"], 1), bool)
        first[:, 0] = True
        passed = b.op(logical.greater_or_equal, weights, threshold)
        kept = b.op(logical.logical_or, passed, b.constant(first))
    else:
        return None
    return b.op(cast.cast, kept, to=dtype)


def _write_capacity(node: Node, b: Builder, selected: Value, num: DimLike) -> Value:
    """Returns `selected` [tokens, top_k, E] without what experts have no room for."""
    attrs, dtype = node.attrs, selected.dtype
    if selected.shape is None:
        raise AssertionError("the body of moe needs shapes")
    top_k, experts = attrs["top_k"], selected.shape[2]
    # counts in f32, whatever the weights are in
    wide = b.op(cast.cast, selected, to=DType.F32)
    turned = b.op(reshaping.transpose, wide, perm=(1, 0, 2))
    flat = b.op(reshaping.reshape, turned, shape=(product((top_k, num)), experts))
    before = b.op(cumulative.cumsum, flat, axis=0, exclusive=True)
    total = _write_count(b, flat)
    fits = _write_fits(node, b, before, total)
    back = b.op(reshaping.reshape, fits, shape=(top_k, num, experts))
    kept = b.op(reshaping.transpose, back, perm=(1, 0, 2))
    return b.op(arithmetic.mul, selected, b.op(cast.cast, kept, to=dtype))


def _write_count(b: Builder, rows: Value) -> Value:
    """Returns how many rows there are, f32[1, 1]."""
    ones = b.op(cast.cast, b.op(logical.equal, rows, rows), to=DType.F32)
    first = b.op(reduce.reduce_max, ones, axes=(1,), keepdims=True)
    return b.op(reduce.reduce_sum, first, axes=(0,), keepdims=True)


def _write_fits(node: Node, b: Builder, before: Value, total: Value) -> Value:
    """Returns 1 where `experts * before < capacity * total`, else 0."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    experts = 0 if shape is None else shape[-1]
    assert isinstance(experts, int), "the experts of a layer are counted"
    room = b.op(arithmetic.mul, total, b.constant(node.attrs["capacity"], DType.F32))
    asked = b.op(arithmetic.mul, before, b.constant(float(experts), DType.F32))
    return b.op(cast.cast, b.op(logical.less, asked, room), to=DType.F32)


def _write_experts_choose(
    node: Node, b: Builder, scores: Value, ranked: Value, gain: Value | None
) -> Value:
    """Returns weights [tokens, E]."""
    attrs, dtype, shape = node.attrs, scores.dtype, scores.shape
    if shape is None:
        raise AssertionError("the body of moe needs shapes")
    columns = b.op(reshaping.transpose, ranked, perm=(1, 0))
    _, order = b.multi(selecting.top_k, columns, k=shape[0], axis=-1)  # [E, tokens]
    ones = b.op(cast.cast, b.op(logical.equal, order, order), to=DType.F32)
    place = b.op(cumulative.cumsum, ones, axis=1, exclusive=True)
    count = b.op(reduce.reduce_sum, ones, axes=(1,), keepdims=True)
    total = b.op(arithmetic.mul, count, b.constant(float(attrs["top_k"]), DType.F32))
    fits = _write_fits(node, b, place, total)
    none = b.op(arithmetic.sub, ones, ones)
    placed = b.op(scattering.scatter_elements, none, order, fits, axis=1)
    taken = b.op(cast.cast, b.op(reshaping.transpose, placed, perm=(1, 0)), to=dtype)
    weights = b.op(arithmetic.mul, taken, scores)
    if attrs["renormalize"]:
        total = b.op(reduce.reduce_sum, weights, axes=(1,), keepdims=True)
        nothing = b.op(cast.cast, b.op(logical.equal, total, b.constant(0.0, dtype)), to=dtype)
        weights = b.op(arithmetic.div, weights, b.op(arithmetic.add, total, nothing))
    if gain is not None:
        weights = b.op(arithmetic.mul, taken, _gained(b, weights, gain))
    return weights
