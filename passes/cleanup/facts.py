"""What cleanup rules ask about values: equal types, numbers, uniform constants, static sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import TensorType, Type
from regraft.ir.weights import Role

Array = np.ndarray[Any, Any]

_MAX_UNIFORM_BYTES = 1 << 16


def same_type(a: Value, b: Value) -> bool:
    """Returns whether both are tensors of one element type and one known shape."""
    x, y = a.type, b.type
    return (
        isinstance(x, TensorType)
        and x.shape is not None
        and x.dtype is not None
        and (x is y or x == y)
    )


def uniform(value: Value | None) -> float | None:
    """Returns the number that all elements of a numeric or bool constant equal, else None.

    Constants above 64 KiB are not read. NaN is no number here, nor is a parameter that may be
    trained: a bias starts at zero and does not stay there.
    """
    if value is None or not is_constant(value) or _may_be_trained(value):
        return None
    array = constant_of(value, _MAX_UNIFORM_BYTES)
    if array is None or array.size == 0 or array.dtype.kind in "OUSc":
        return None
    first = array.flat[0]
    if array.size > 1 and not (array == first).all():
        return None
    number = float(first)
    return None if math.isnan(number) else number


def _may_be_trained(value: Value) -> bool:
    producer = value.producer
    if producer is None or producer.op is not weight or producer.graph is None:
        return False
    store = producer.graph.scope.weights
    return store.trainable and store.role(producer.attrs["name"]) is Role.PARAM


def other_operand(node: Node, number: float) -> Value | None:
    """Returns the operand of a commutative node whose partner is `number` everywhere, or None."""
    a, b = node.inputs[0], node.inputs[1]
    if uniform(b) == number:
        return a
    return b if uniform(a) == number else None


def made_by(value: Value | None, op: OpSpec) -> Node | None:
    """Returns the node of operator `op` whose first result is `value`, or None."""
    if value is None:
        return None
    producer = value.producer
    if producer is None or producer.op is not op or value.index:
        return None
    return producer


def only_used_by(value: Value, node: Node) -> bool:
    """Returns whether every use of `value` is an operand of `node`."""
    return all(user is node for user, _ in value._uses)


def static_ints(items: Any) -> tuple[int, ...] | None:
    """Returns a tuple of plain ints, or None when an item is symbolic or the tuple is unknown."""
    if isinstance(items, tuple) and all(type(item) is int for item in items):
        return items
    return None


def static_shape_of(type_: Type) -> tuple[int, ...] | None:
    """Returns the sizes of a tensor type when all are known."""
    return static_ints(type_.shape) if isinstance(type_, TensorType) else None


def broadcasts_to(shape: Sequence[DimLike] | None, target: Sequence[DimLike] | None) -> bool:
    """Returns whether a tensor of `shape` surely broadcasts to exactly `target`."""
    if shape is None or target is None or len(shape) > len(target):
        return False
    offset = len(target) - len(shape)
    return all(dim in (1, target[offset + i]) for i, dim in enumerate(shape))


_BROADCASTING = ("*b -> *b", "*b, *b -> *b", "*b, *b, *b -> *b", "*b, ., . -> *b")


def is_broadcasting(op: OpSpec) -> bool:
    """Returns whether the operator is element-wise on operands that broadcast, and nothing else.

    Pinned further operands (`.`) are scalars: the bounds of a clip.
    """
    return (
        Trait.ELEMENTWISE in op.traits
        and Trait.PURE in op.traits
        and len(op.results) == 1
        and op.axes in _BROADCASTING
    )
