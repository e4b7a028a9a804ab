"""Plans to raise what decides the weights of experts: scores, a choice, a renormalization.

What a layer's weights are is found by evaluating how they follow from scores: drawn scores go
through the nodes of the module, and the result must be that of one of the operator's scorings,
with or without renormalization, choosing bias and groups of experts, up to one factor. Anything
else (capacities, thresholds, a factor per expert) stays as it is, with the weights given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import known_equal, product
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import cast, cumulative, linalg, logical, moe, reshaping, selecting
from regraft.ir.ops.moe_routing import route
from regraft.ir.rewrite import Rewriter
from regraft.passes.analysis.linear_layers import MOVES
from regraft.passes.cleanup.facts import uniform
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.fusion.prove import CannotEvaluateError, evaluated
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]

_MAX_VALUES = 200
_RTOL = 1e-9
"""Both sides compute in f64; epsilons in denominators are below it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """How weights follow from scores."""

    scores: Value
    bias: Value | None
    attrs: dict[str, Any]


def plan_routing(graph: Graph, plan: Plan) -> None:
    """Adds the operators `moe` of a graph whose given weights follow from scores."""
    for node in graph:
        if node.op is not moe.moe or node.attrs["scoring"] != "given" or node in plan.places:
            continue
        found = _routing(node)
        if isinstance(found, str):
            plan.skipped.append(Skip(str(node.output.name), f"routing: {found}"))
        elif found is not None:
            plan.add(node, "raise-routing", _raised(found))


def _raised(found: _Found) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        b = rw.builder(node)
        x, shares = node.inputs[0], node.inputs[1]
        assert shares is not None, "moe has weights"
        assert shares.shape is not None, "its sizes were read"
        scores = found.scores
        if scores.shape != shares.shape:
            scores = b.op(reshaping.reshape, scores, shape=shares.shape)
        bias = found.bias
        if bias is not None and bias.shape != shares.shape[-1:]:
            bias = b.op(reshaping.reshape, bias, shape=shares.shape[-1:])
        operands = [*node.inputs[2:8], *[None] * (8 - len(node.inputs))]
        operands.append(bias)
        while operands[-1] is None:
            operands.pop()
        rw.replace(node, b.op(moe.moe, x, scores, *operands, **found.attrs))

    return apply


def _routing(node: Node) -> _Found | str | None:
    """Returns how the given weights follow from scores, or why not; None where they are inputs."""
    shares = node.inputs[1]
    if shares is None or shares.shape is None or not isinstance(shares.shape[-1], int):
        return "the number of experts is not static"
    count = shares.shape[-1]
    values, biases, makers = _between(shares, count)
    if any(maker.op is cumulative.cumsum for maker in makers):
        return "what a token's weights are depends on the tokens before it (a capacity)"
    if not values:
        return "no scores are found that its weights follow from"
    choices = [_NO_GROUPS, *_groups(makers, count)]
    reason = "its weights are none of the operator's scorings, they stay as they are"
    for scores in values:
        found = _fitting(node, shares, scores, biases, choices)
        if isinstance(found, _Found):
            return found
        reason = found or reason
    return reason


_NO_GROUPS: dict[str, Any] = {}


def _groups(makers: list[Node], count: int) -> list[dict[str, Any]]:
    """Returns the ways to choose among groups of experts that choices of a router may be.

    Scores of the groups that are not asked are replaced by a number. That is what the operator
    does where nothing is below it.
    """
    chosen = dict.fromkeys(
        (maker.inputs[0].shape[-1], k)
        for maker in makers
        if maker.op is selecting.top_k and maker.inputs[0] is not None and maker.inputs[0].shape
        and isinstance(k := maker.static("k"), int)
    )  # fmt: skip
    fills = [
        float(content)
        for maker in makers if maker.op is logical.where
        for value in maker.inputs[1:]
        if value is not None and (content := uniform(value)) is not None
    ]  # fmt: skip
    found = []
    for groups, asked in chosen:
        if not isinstance(groups, int) or not 1 < groups < count or count % groups:
            continue
        rated = {k for size, k in chosen if size == count // groups}
        found += [
            {"select": "groups", "groups": groups, "top_groups": asked, "group_best": best,
             "fill": max(fills, default=-np.inf)}
            for best in sorted(rated | {1}, reverse=True)
        ]  # fmt: skip
    return found


def _between(shares: Value, count: int) -> tuple[list[Value], list[Value], list[Node]]:
    """Returns values with one number per expert and token, last ones first, vectors [E], nodes.

    The last scores that fit hold everything that a router adds to them; what is not proved of a
    zero bias is that it may be left out.
    """
    seen: dict[Value, None] = {}
    biases: dict[Value, None] = {}
    makers: dict[Node, None] = {}
    queue = [shares]
    while queue and len(seen) < _MAX_VALUES:
        value = queue.pop(0)
        if value in seen or value.producer is None:
            continue
        if is_constant(value):
            if value.shape is not None and product(value.shape) == count:
                biases[value] = None
            continue
        seen[value] = None
        maker = value.producer
        makers[maker] = None
        if maker.op not in (linalg.matmul, linalg.gemm):
            queue += [v for v in maker.inputs if v is not None]
    number = product(shares.shape or ())
    values = [
        value for value in seen
        if value is not shares and value.shape is not None and value.dtype is not None
        and value.dtype.is_float and known_equal(value.shape[-1] if value.shape else 0, count)
        and known_equal(product(value.shape), number)
    ]  # fmt: skip
    # the first value of a chain of moves says as much as the others
    kept = [v for v in values if v.producer is None or not _is_move(v.producer, set(values))]
    kept.sort(key=_order, reverse=True)
    return kept, list(biases), list(makers)


def _order(value: Value) -> int:
    return 0 if value.producer is None else value.producer.order


def _is_move(node: Node, known: set[Value]) -> bool:
    return node.op in MOVES and node.op is not cast.cast and node.inputs[0] in known


def _fitting(
    node: Node,
    shares: Value,
    scores: Value,
    biases: list[Value],
    choices: list[dict[str, Any]],
) -> _Found | str | None:
    """Returns the routing that scores lead to, how it is another one, or None."""
    count = int(str((shares.shape or (0,))[-1]))
    draws: list[tuple[Array, Array]] = []
    for style in range(3):
        rng = np.random.default_rng([count, style])
        spread = (1.0, 0.05, 4.0)[style]
        try:
            drawn, result = evaluated(shares, scores, partial(_drawn, rng, spread))
        except CannotEvaluateError:
            return None
        draws.append((drawn.reshape(-1, count), result.reshape(-1, count)))
    chosen = {int(n) for _, result in draws for n in np.unique((result != 0).sum(1))}
    if len(chosen) != 1 or not (top_k := chosen.pop()):
        return None
    candidates = itertools.product(choices, _bias_candidates(biases, scores, count), _CANDIDATES)
    scaled = False
    for choice, (bias, content), (scoring, renormalize) in candidates:
        attrs = {
            **node.attrs, "scoring": scoring, "renormalize": renormalize, "top_k": top_k,
            "routed_scale": 1.0, **choice,
        }  # fmt: skip
        if not _is_lowest(attrs.pop("fill", -np.inf), scoring, content):
            continue
        factor = _factor(draws, attrs, content)
        if isinstance(factor, float):
            attrs["routed_scale"] = factor * node.attrs["routed_scale"]
            return _Found(scores, bias, attrs)
        scaled |= factor is not None
    return "every expert has a factor of its own" if scaled else None


def _is_lowest(fill: float, scoring: str, bias: Array | None) -> bool:
    """Returns whether no score is below the number that hides groups of experts."""
    if fill <= np.finfo(np.float32).min:
        return True
    least = 0.0 if bias is None else float(bias.min())
    return scoring != "topk_softmax" and fill <= least


def _drawn(rng: np.random.Generator, spread: float, shape: tuple[int, ...]) -> Array:
    return rng.normal(0.0, spread, shape)


_CANDIDATES = (
    ("topk_softmax", False), ("softmax", False), ("softmax", True), ("sigmoid", False),
    ("sigmoid", True),
)  # fmt: skip


def _bias_candidates(
    biases: list[Value], scores: Value, count: int
) -> Iterator[tuple[Value | None, Array | None]]:
    for value in biases:
        is_behind = any(user.order > _order(scores) for user in value.users)
        content = constant_of(value) if is_behind else None
        if content is not None and value.dtype is not None and value.dtype.is_float:
            yield value, content.astype(np.float64).reshape(count)
    yield None, None


def _factor(
    draws: list[tuple[Array, Array]], attrs: dict[str, Any], bias: Array | None
) -> float | Array | None:
    """Returns what the operator's weights are multiplied by to be those drawn, None for no fit.

    That is one number, or several, one per expert.
    """
    factor = None
    for scores, wanted in draws:
        _, made = route(attrs, scores, bias)
        if factor is None:
            place = np.unravel_index(np.abs(made).argmax(), made.shape)
            factor = float(wanted[place] / made[place])
            if not factor or not np.isfinite(factor):
                return None
            nearest = round(factor * 64) / 64  # a factor is written with few digits
            if nearest and abs(nearest - factor) < 1e-12 * abs(factor):
                factor = nearest
        if not np.abs(made * factor - wanted).max() <= _RTOL * np.abs(wanted).max():
            return _factors(draws, attrs, bias)
    return factor


def _factors(
    draws: list[tuple[Array, Array]], attrs: dict[str, Any], bias: Array | None
) -> Array | None:
    """Returns by which number per expert the operator's weights would be those drawn, or None."""
    made = np.concatenate([route(attrs, scores, bias)[1] for scores, _ in draws])
    wanted = np.concatenate([each for _, each in draws])
    if ((made != 0) != (wanted != 0)).any():
        return None
    total = np.abs(made).sum(0)
    factors: Array = np.abs(wanted).sum(0) / np.where(total == 0, 1, total)
    is_same = np.abs(made * factors - wanted).max() <= _RTOL * np.abs(wanted).max()
    return factors if is_same else None
