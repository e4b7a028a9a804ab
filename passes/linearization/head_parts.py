"""Which heads of a layer an operator has, where some heads are linear and others a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.ops import gathering, slicing

_HEADS, _RANK = 1, 4
_VALUES = 2
"""Operand of values, of everything that mixes tokens by keys and queries."""
_INDEX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class HeadsOf:
    """An operator with some of a layer's heads.

    Attributes:
        node: The operator.
        heads: Numbers of its query heads in the layer, in its order.
    """

    node: Node
    heads: tuple[int, ...]


def parts_of_layers(layers: Sequence[Node], nodes: Sequence[Node]) -> list[tuple[HeadsOf, ...]]:
    """Returns what every layer was split into, in order.

    Args:
        layers: The operators of the module before, whole.
        nodes: Those of the module that was made of it.

    Returns:
        One entry per layer; more or fewer where heads do not add up to those of the layers.
    """
    found: list[tuple[HeadsOf, ...]] = []
    waiting = list(nodes)
    for layer in layers:
        count, parts = _count(layer), []
        seen: set[int] = set()
        while waiting and len(seen) < count:
            node = waiting.pop(0)
            heads = _numbers(node, count)
            if not seen.isdisjoint(heads) or len(seen) + len(heads) > count:
                return [(HeadsOf(each, tuple(range(_count(each)))),) for each in nodes]
            seen.update(heads)
            parts.append(HeadsOf(node, heads))
        if parts:
            found.append(tuple(parts))
    found += [(HeadsOf(node, tuple(range(_count(node)))),) for node in waiting]
    return found


def _count(node: Node) -> int:
    q = node.inputs[0]
    size = (() if q is None else q.shape or ())[_HEADS]
    assert isinstance(size, int), "what was recognized has a static number of heads"
    return size


def _numbers(node: Node, count: int) -> tuple[int, ...]:
    """Returns the numbers of query heads; the first ones where no part is taken of anything."""
    own = _count(node)
    keys = tuple(range(own // node.attrs["kv_groups"]))
    values = node.inputs[_VALUES]
    if own < count and values is not None:
        keys = _picked_heads(values) or keys
    groups: int = node.attrs["kv_groups"]
    return tuple(head * groups + i for head in keys for i in range(groups))


def _picked_heads(value: Value) -> tuple[int, ...] | None:
    made = value.producer
    if made is None or made.inputs[0] is None or made.inputs[0].rank != _RANK:
        return None
    if made.op is slicing.slice_ and made.attrs["axes"] == (_HEADS,):
        starts, ends, steps = (made.attrs[name] for name in ("starts", "ends", "steps"))
        if starts and ends and steps in (None, (1,)):
            return tuple(range(starts[0], ends[0]))
    if made.op is gathering.gather and made.attrs["axis"] == _HEADS:
        found = constant_of(made.inputs[1], _INDEX_BYTES)
        return None if found is None else tuple(int(i) for i in found.reshape(-1))
    return None
