"""Guards of rows without a visible key: what sets their weights to 0 where the softmax gives NaN.

`attention` gives such rows 0 anyway, so that a guard changes nothing and is left out when it is
raised. What a condition says is found by evaluating it on scores with and without visible keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import bind, symbols_of
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Node, Value
from regraft.ir.ops import logical
from regraft.ir.opspec import Trait
from regraft.passes.analysis.attention_scores import Cond, Scores
from regraft.passes.analysis.attention_skeleton import Site
from regraft.passes.analysis.fills import filled

Array = np.ndarray[Any, Any]

_MAX_NODES = 12
_SIZE = 3


def guard_nodes(zeroed: Cond, scores: Scores, site: Site) -> list[Node] | None:
    """Returns what computes, from the scores, a condition that is a guard; None when it is none.

    A guard concerns rows without a visible key alone: it holds where an added mask is -inf, where
    weights are 0 already or NaN, or for the rows of which all scores are -inf.
    """
    condition = zeroed.term.value
    if not zeroed.hides:
        return None
    if _is_infinite_mask(condition, scores):
        return []
    nodes = _between(condition, site.logits)
    return nodes if _is_empty_row(condition, nodes, site) else None


def _is_infinite_mask(condition: Value, scores: Scores) -> bool:
    """Whether it says that a mask, which is added to the scores, is -inf."""
    node = condition.producer
    if node is None or node.op is not logical.equal:
        return False
    masks = {term.value for term in scores.terms if term.factor > 0}
    for idx in (0, 1):
        if node.inputs[idx] in masks and filled(node.inputs[1 - idx]) == -np.inf:
            return True
    return False


def _is_empty_row(condition: Value, nodes: list[Node], site: Site) -> bool:
    """Whether it says that all scores along the keys are -inf, in whatever spelling."""
    shape = site.logits.shape
    if not nodes or shape is None:
        return False
    env = {
        symbol.name: _SIZE for value in _values(nodes) for symbol in symbols_of(value.shape or ())
    }
    sizes = [bind(dim, env) for dim in shape]
    rng = np.random.default_rng(0)
    full = rng.standard_normal([size for size in sizes if isinstance(size, int)])
    if full.ndim != len(sizes):
        return False
    keys_first = np.moveaxis(full, site.axis, 0)  # a view
    keys_first[1:, ..., 0] = -np.inf  # some hidden
    partly = np.array(full)
    keys_first[...] = -np.inf
    return _all(condition, nodes, {site.logits: partly}, env) is False and (
        _all(condition, nodes, {site.logits: full}, env) is True
    )


def _all(
    condition: Value, nodes: list[Node], known: dict[Value, Any], env: dict[str, int]
) -> bool | None:
    """Returns what the condition says of every row, None when that differs or cannot be run."""
    try:
        for node in nodes:
            if Trait.CONSTANT in node.op.traits:
                known[node.output] = constant_of(node.output)
                continue
            operands = [None if value is None else known[value] for value in node.inputs]
            known.update(zip(node.outputs, evaluate_node(node, operands, env), strict=False))
    except (RegraftError, ValueError, IndexError):
        return None
    result = np.asarray(known[condition]).astype(bool)
    return bool(result.flat[0]) if (result == result.flat[0]).all() else None


def _between(condition: Value, logits: Value) -> list[Node]:
    """Returns the nodes that compute the condition from the scores alone, [] when it has others."""
    found: dict[Node, None] = {}
    stack = [condition]
    while stack:
        value = stack.pop()
        if value is logits:
            continue
        node = value.producer
        if node is None or node.bodies or not node.op.is_pure:
            return []
        if Trait.CONSTANT in node.op.traits and constant_of(value, 64) is None:
            return []
        found[node] = None
        if len(found) > _MAX_NODES:
            return []
        stack += [v for v in node.inputs if v is not None]
    return sorted(found, key=lambda node: node.order)


def _values(nodes: list[Node]) -> list[Value]:
    inputs = [value for node in nodes for value in node.inputs if value is not None]
    return [*inputs, *(value for node in nodes for value in node.outputs)]
