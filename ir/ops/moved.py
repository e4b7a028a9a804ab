"""Symbolic content of data movement: the operator's own meaning, run on an array of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import MAX_CONTENT, constant_of
from regraft.ir.dims import Dim
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Content, Node, Value
from regraft.ir.opspec import Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_MAX_CHAIN = 8  # operators that content is followed through; exporters' pad chains have four


def content_moved(node: Node) -> Content | None:
    """Content of a data movement whose operands have content.

    Operands of rank 2, which have no content of their own (exporters reverse pads through one),
    are followed to their source, at most 8 operators up.
    """
    first = node.inputs[0]
    if first is None or (first.content is None and first.rank in (None, 0, 1)):
        return None
    type_ = node.outputs[0].type
    if not _is_small(type_) or len(type_.shape) > 1:  # type: ignore[union-attr, arg-type]  # small
        return None
    array = _moved(node, _MAX_CHAIN)
    if array is None:
        return None
    return array.item() if array.ndim == 0 else tuple(array)


def _is_small(type_: Type) -> bool:
    if not isinstance(type_, TensorType) or type_.shape is None:
        return False
    total = 1
    for dim in type_.shape:
        if isinstance(dim, Dim):
            return False
        total *= dim
    return total <= MAX_CONTENT


def _sizes_in(value: Value, chain: int) -> Array | None:
    """Returns an object array of the sizes that a tensor holds, or None."""
    content = value.content
    if content is not None:
        array = np.empty(len(content) if isinstance(content, tuple) else (), object)
        array[...] = content
        return array
    producer = value.producer
    if producer is None or not _is_small(value.type):
        return None
    if Trait.DATA_MOVEMENT in producer.op.traits and len(producer.outputs) == 1:
        return _moved(producer, chain - 1) if chain else None
    if value.dtype is None or not value.dtype.is_integer:
        return None
    constant = constant_of(value)
    return None if constant is None else constant.astype(object)


def _moved(node: Node, chain: int) -> Array | None:
    for attr in node.attrs.values():
        if isinstance(attr, Dim) or (
            isinstance(attr, tuple) and any(isinstance(item, Dim) for item in attr)
        ):
            return None
    slots = node.op.operands
    operands: list[Array | None] = []
    for idx, value in enumerate(node.inputs):
        if value is None:
            operands.append(None)
            continue
        array = _sizes_in(value, chain)
        if array is None:
            return None
        slot = slots[min(idx, len(slots) - 1)]
        if slot.either is not None or slot.name == "indices":
            if any(isinstance(item, Dim) for item in array.flat):
                return None
            array = array.astype(np.int64)
        operands.append(array)
    if node.op.eval is None:
        raise AssertionError(f"`{node.op.name}` moves data and has no eval")
    return np.asarray(node.op.eval(EvalContext(node, node.attrs, {}), *operands), object)
