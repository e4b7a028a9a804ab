"""Some heads of an attention linear, the others a softmax: two operators, put together in order.

Heads go by groups: the queries that share keys go with them. The split itself is exact: heads of
attention do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import gathering, rotary, slicing
from regraft.ir.ops.attention import attention
from regraft.passes.linearization.methods import Method, Options
from regraft.passes.linearization.place import Built, Part, Place

_HEADS = 1
"""The axis of heads, of queries, keys, values and results."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which key heads of an attention go where.

    Attributes:
        linear: Numbers of the key heads that become linear, ascending.
        groups: Query heads per key head.
        count: Key heads in all.
    """

    linear: tuple[int, ...]
    groups: int
    count: int

    @property
    def softmax(self) -> tuple[int, ...]:
        """Numbers of the key heads that stay."""
        return tuple(head for head in range(self.count) if head not in self.linear)

    def queries(self, heads: Sequence[int]) -> tuple[int, ...]:
        """Returns the numbers of the query heads that read some key heads."""
        return tuple(head * self.groups + i for head in heads for i in range(self.groups))


def linear_in_part(
    module: Module, place: Place, method: Method, options: Options, linear: tuple[int, ...]
) -> Built:
    """Returns an attention of which some key heads are linear, all in their places.

    Args:
        module: Holds what was fitted for all heads, which these heads begin with.
        place: The attention, whole.
        method: What the linear heads become.
        options: Of the method.
        linear: Numbers of the key heads, some and not all.
    """
    split = Split(linear, place.kv_groups, place.kv_heads)
    b = place.b
    soft = _attention_of(place, split, split.softmax)
    alone = _attention_of(place, split, linear)
    node = alone.producer
    assert node is not None, "an attention makes its result"
    inner = Place(node, place.number, b, part=Part(place.kv_heads, linear, _given(module, place,
                  split)))  # fmt: skip
    built = method.build(inner, options)
    made = b.op(slicing.concat, soft, built.out, axis=_HEADS)
    found = split.queries((*split.softmax, *linear))
    out = picked(b, made, tuple(int(i) for i in np.argsort(found)))
    return Built(out, built.linear, built.log_weights, built.trained)


def _attention_of(place: Place, split: Split, heads: tuple[int, ...]) -> Value:
    b, node = place.b, place.node
    q = _turned_behind(b, place.operand("q"), split.queries(heads))
    k = _turned_behind(b, place.operand("k"), heads)
    v = picked(b, place.operand("v"), heads)
    # masks and lengths are the same for all heads: others are not linearized
    return b.op(attention, q, k, v, *node.inputs[3:], **node.attrs)


def picked(b: Builder, x: Value, heads: tuple[int, ...]) -> Value:
    """Returns some heads of [B, H, S, D], in the order that is given."""
    if (x.shape or ())[_HEADS] == len(heads) and heads == tuple(range(len(heads))):
        return x
    if heads == tuple(range(heads[0], heads[-1] + 1)):
        return b.op(
            slicing.slice_, x, starts=(heads[0],), ends=(heads[-1] + 1,), axes=(_HEADS,), steps=(1,)
        )
    return b.op(gathering.gather, x, b.constant(np.array(heads, np.int64)), axis=_HEADS)


def _turned_behind(b: Builder, x: Value, heads: tuple[int, ...]) -> Value:
    """Returns some heads; of a rotary embedding, those before it, turned: maps may stand between.

    Angles are the same for all heads.
    """
    made = x.producer
    if made is None or made.op is not rotary.rotary_embedding or made.inputs[0] is None:
        return picked(b, x, heads)
    before = picked(b, made.inputs[0], heads)
    return b.op(rotary.rotary_embedding, before, *made.inputs[1:], **made.attrs)


def _given(module: Module, place: Place, split: Split) -> dict[str, Any]:
    """Returns what was learned for all heads, of the linear ones alone."""
    found = {}
    for full in place.trained:
        array = module.weights[full].numpy()
        per_query = len(array) == place.heads
        heads = split.queries(split.linear) if per_query else split.linear
        found[full.removeprefix(place.prefix)] = array[list(heads)]
    return found
