"""Attention that is no weighted sum of values by a softmax of scores: reported as what it is.

`talking_heads` mixes the scores of several heads before the softmax; `factorized` and `linear`
multiply keys and values first, the keys under a softmax over positions or a feature map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import activation, cast, functions, repeating
from regraft.passes.analysis.attention_skeleton import softmax_site
from regraft.passes.analysis.products import Product, product_of
from regraft.passes.analysis.views import View, leaves, view_of

_MAPS = frozenset(
    {
        activation.relu, activation.elu, activation.softplus, activation.sigmoid,
        activation.gelu, activation.swish, functions.exp,
    }
)  # fmt: skip
"""Feature maps of linear attention."""


@dataclass(frozen=True, slots=True, eq=False)
class OtherAttention:
    """Attention that the operator `attention` cannot stand for.

    Args:
        form: `talking_heads`, `factorized` or `linear`.
        output: The weights of talking heads, else the result.
        heads: Number of heads.
        nodes: The nodes that tell it.
    """

    form: str
    output: Value
    heads: DimLike
    nodes: tuple[Node, ...]

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""
        return {
            "kind": self.form,
            "output": self.output.name,
            "heads": self.heads if isinstance(self.heads, int) else str(self.heads),
            "canonical": False,
            "problem": "the operator `attention` weighs values by a softmax of their own scores",
        }


def products_of_three(graph: Graph, data: set[Value]) -> Iterator[OtherAttention]:
    """Yields the attentions `q (k' v)` of one graph; cost O(products)."""
    for node in graph:
        outer = product_of(node)
        if outer is None or any(outer.operand(idx) not in data for idx in (0, 1)):
            continue
        for idx in (0, 1):
            found = _read(outer, idx, data)
            if found is not None:
                yield found
                break


def _read(outer: Product, idx: int, data: set[Value]) -> OtherAttention | None:
    """Reads `q (k' v)` whose inner product is operand `idx` of the outer one."""
    view = view_of(outer.operand(idx), scales=True)
    inner = None if view.base.producer is None else product_of(view.base.producer)
    if inner is None or any(inner.operand(i) not in data for i in (0, 1)):
        return None
    summed = _summed(outer, idx, view)
    if not summed:
        return None
    channels = [
        label
        for label, axis in zip(inner.out, view.base_axes, strict=True)
        if summed & set(leaves(axis))
    ]
    if len(channels) != 1 or channels[0] is None:
        return None
    in_a, in_b = channels[0] in inner.a, channels[0] in inner.b
    if in_a == in_b:
        return None  # a batch axis
    keys_idx = 0 if in_a else 1
    keys, queries = _mapped(inner.operand(keys_idx)), _mapped(outer.operand(1 - idx))
    if keys is None:
        return None
    form = ""
    if _is_over_positions(inner, keys_idx):
        form = "factorized"
    elif queries is not None and keys.op is queries.op and keys.op in _MAPS:
        form = "linear"
    if not form:
        return None
    shape = inner.operand(keys_idx).shape or ()
    labels = inner.labels(keys_idx)
    shared = [
        size
        for label, size in zip(labels, shape, strict=True)
        if label is not None and label in inner.a and label in inner.b and label in inner.out
    ]
    return OtherAttention(
        form, outer.node.outputs[0], product(shared[1:]), (keys, inner.node, outer.node)
    )


def _summed(outer: Product, idx: int, view: View) -> set[object]:
    """Returns the atoms of the inner product that the outer one sums over."""
    return {
        leaf
        for label, axis in zip(outer.labels(idx), view.axes, strict=True)
        if label is not None and label not in outer.out
        for leaf in leaves(axis)
    }


def _mapped(value: Value) -> Node | None:
    """Returns the node that made keys or queries, data movement and padding aside."""
    for _ in range(8):
        base = view_of(value, scales=True).base
        node = base.producer
        if node is None or node.op not in (cast.cast, repeating.pad) or node.inputs[0] is None:
            return node
        value = node.inputs[0]
    return None


def _is_over_positions(inner: Product, keys_idx: int) -> bool:
    """Whether the keys are a softmax along the axis that the inner product sums over."""
    view = view_of(inner.operand(keys_idx), scales=True)
    site = None if view.base.producer is None else softmax_site(view.base.producer)
    if site is None:
        return False
    over = set(leaves(view.base_axes[site.axis]))
    return bool(over) and over == {
        leaf
        for label, axis in zip(inner.labels(keys_idx), view.axes, strict=True)
        if label is not None and label not in inner.out
        for leaf in leaves(axis)
    }
