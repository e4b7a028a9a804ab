"""The two constant operators, the opaque operator, and the one way to read a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type, dtype_of
from regraft.ir.weights import ArrayWeight, Weight

MAX_CONTENT = 64
"""Integer constants of at most this many elements have symbolic content."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Blob:
    """An attribute value that only another framework understands, carried through as it is.

    Args:
        kind: What it is, such as `onnx.AttributeProto`.
        data: Its serialized bytes.
    """

    kind: str
    data: bytes


def content_of_array(array: Array) -> DimLike | tuple[DimLike, ...] | None:
    """Returns the content of an integer or bool (0, 1) array of rank 0 or 1, or None."""
    if array.dtype.kind not in "iub" or array.ndim > 1 or array.size > MAX_CONTENT:
        return None
    if array.ndim == 0:
        return int(array)
    return tuple(int(item) for item in array)


def _infer_literal(node: Node) -> Type:
    array: Array = node.attrs["value"]
    return TensorType(dtype_of(array), array.shape)


def _infer_weight(node: Node) -> Type:
    weight = _weight(node)
    return TensorType(weight.dtype, weight.shape)


def _content_weight(node: Node) -> DimLike | tuple[DimLike, ...] | None:
    weight = _weight(node)
    if len(weight.shape) > 1 or not weight.dtype.is_integer or weight.nbytes > 8 * MAX_CONTENT:
        return None
    return content_of_array(weight.numpy())


def _weight(node: Node) -> Weight:
    if node.graph is None:
        raise AssertionError("a weight node outside a graph")
    name = node.attrs["name"]
    try:
        return node.graph.scope.weights[name]
    except KeyError:
        raise node.error(f"the module has no weight `{name}`") from None


literal = OpSpec(
    name="literal",
    source="ONNX Constant-25 (inline value)",
    attrs=(Attr("value", AttrKind.ARRAY),),
    traits=Trait.PURE | Trait.CONSTANT | Trait.RAW,
    infer=_infer_literal,
    content=lambda node: content_of_array(node.attrs["value"]),
    eval=lambda c: c.attrs["value"],
)

weight = OpSpec(
    name="weight",
    source="ONNX initializer (by name)",
    attrs=(Attr("name", AttrKind.STR),),
    traits=Trait.PURE | Trait.CONSTANT | Trait.RAW,
    infer=_infer_weight,
    content=_content_weight,
    eval=lambda c: _weight(c.node).numpy(),
)


def _infer_opaque(node: Node) -> tuple[Type, ...]:
    return tuple(value.type for value in node.outputs)  # declared by the frontend


opaque = OpSpec(
    name="opaque",
    source="an operator of another dialect that has no spec",
    operands=(Operand("inputs", variadic=True),),
    results=("outputs*",),
    attrs=(
        Attr("dialect", AttrKind.STR),  # `onnx:ai.onnx.ml`, `torch:aten`
        Attr("op_type", AttrKind.STR),
        Attr("version", AttrKind.INT, 0),  # since-version of the schema, 0 when unknown
        # ((name, value), …) as the frontend made them; of a body, the value is its index
        Attr("attributes", AttrKind.ANY, ()),
        Attr("body_names", AttrKind.STRS, ()),  # attribute names of the bodies
        Attr("num_captures", AttrKind.INT, 0),
    ),
    traits=Trait.NONE | Trait.CAPTURES,
    infer=_infer_opaque,
)

OPS: tuple[OpSpec, ...] = (literal, weight, opaque)


def is_constant(value: Value | None) -> bool:
    """Returns whether a `literal` or `weight` produces the value."""
    return (
        value is not None
        and value.producer is not None
        and (value.producer.op is literal or value.producer.op is weight)
    )


def constant_of(value: Value | None, max_bytes: int = 1 << 20) -> Array | None:
    """Returns the constant content of a value; the one way to read it.

    Looks through `if` captures and loop invariants. None when the value is no constant or takes
    more than `max_bytes`. Do not write to the array.
    """
    while value is not None and value.producer is None:
        value = captured_value(value)
    if value is None or value.producer is None:
        return None
    producer = value.producer
    if producer.op is literal:
        array: Array = producer.attrs["value"]
        return array if array.nbytes <= max_bytes else None
    if producer.op is weight:
        stored = _weight(producer)
        return stored.numpy() if stored.nbytes <= max_bytes else None
    return None


def weight_of(value: Value | None) -> Weight | None:
    """Returns a constant as a weight, which can be read in parts; None when it is no constant.

    Looks through captures and invariants as `constant_of` does.
    """
    while value is not None and value.producer is None:
        value = captured_value(value)
    if value is None or value.producer is None:
        return None
    producer = value.producer
    if producer.op is literal:
        return ArrayWeight(producer.attrs["value"])
    return _weight(producer) if producer.op is weight else None


def captured_value(value: Value) -> Value | None:
    """Returns the outer value that a body input always equals (a capture or an invariant), or None.

    An invariant is a carried value that the body passes on as it is.
    """
    body = value.graph
    if body is None or body.parent is None:
        return None
    parent = body.parent
    if Trait.CAPTURES not in parent.op.traits:
        return None
    # captures are the last inputs of every body and the last operands of its node
    num_captures = parent.attrs.get("num_captures", 0)
    from_end = len(body.inputs) - value.index
    if from_end <= num_captures:
        return parent.inputs[len(parent.inputs) - from_end]
    # a scan's carried values are its first inputs and results; a loop's come after the iteration
    # number and the condition, and their next values after the condition
    first, first_result = (0, 0) if "num_scanned" in parent.attrs else (2, 1)
    carried = value.index - first
    if not 0 <= carried < parent.attrs.get("num_carried", 0):
        return None
    return parent.inputs[value.index] if body.outputs[first_result + carried] is value else None
