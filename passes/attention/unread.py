"""Softmaxes whose weights meet values without being attention that was recognized: why.

Recognition passes over what does not have the skeleton of attention. Whoever asks for other weights
everywhere wants to know of these places too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, cast, logical, reduce, slicing
from regraft.passes.analysis.attention_skeleton import Site, find_path, softmax_site
from regraft.passes.analysis.dependence import data_values
from regraft.passes.analysis.products import product_of
from regraft.passes.analysis.views import is_movement
from regraft.passes.protocol import Skip

_MAX_NODES = 24

_ON_WEIGHTS = frozenset(
    {
        arithmetic.add, arithmetic.sub, arithmetic.mul, arithmetic.div, cast.cast, logical.where,
        slicing.slice_,
    }
)  # fmt: skip


def unread_softmaxes(graph: Graph, reported: Collection[str]) -> Iterator[Skip]:
    """Yields the softmaxes of one graph that weigh values; cost O(nodes).

    Args:
        graph: A graph whose attention is raised.
        reported: Names of values that a reason was given for.
    """
    data: set[Value] | None = None
    for node in graph:
        site = softmax_site(node)
        if site is None:
            continue
        data = data_values(graph) if data is None else data
        if site.logits not in data or str(site.weights.name) in reported:
            continue
        end = _end(site, data)
        if end is None or str(end.output.name) in reported:
            continue
        yield Skip(str(site.weights.name), f"attention: {_reason(site, end, data)}")


def _reason(site: Site, end: Node, data: set[Value]) -> str:
    if site.logits.shape is not None and site.logits.shape[site.axis] == 1:
        return "there is a single key, whose weight is 1"
    path = find_path(site, data)
    if path is None or any(path[0].operand(idx) not in data for idx in (0, 1)):
        return "what its softmax is taken of is no product of queries and keys"
    if product_of(end) is None:
        return "its values are multiplied and summed element by element"
    return "what becomes of its weights before they meet the values is not read"


def _end(site: Site, data: set[Value]) -> Node | None:
    """Returns where the weights are summed with values that depend on the inputs, or None."""
    stack, seen = [site.weights], set[Node]()
    while stack:
        value = stack.pop()
        for user in value.users:
            if user in seen or len(seen) > _MAX_NODES:
                continue
            seen.add(user)
            product = product_of(user)
            if product is not None:
                others = [product.operand(i) for i in (0, 1) if product.operand(i) is not value]
                if any(other in data for other in others):
                    return user
                stack.append(user.outputs[0])  # a map of the weights: heads that are mixed
                continue
            if user.op is reduce.reduce_sum and _is_weighted(value, site, data):
                return user
            if is_movement(user) or user.op in _ON_WEIGHTS:
                stack.append(user.outputs[0])
    return None


def _is_weighted(value: Value, site: Site, data: set[Value]) -> bool:
    """Whether a value is the weights times values that have more elements than the weights."""
    node = value.producer
    if node is None or node.op is not arithmetic.mul or value.shape is None:
        return False
    weights = site.weights.shape
    return all(x in data for x in node.inputs if x is not None) and (
        weights is None or len(value.shape) > len(weights) or value.shape != weights
    )
