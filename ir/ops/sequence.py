"""Sequences of values, which are Python lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, exact_quotient
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node, Value
from regraft.ir.ops.bodies import join, outside, refresh_captures, reinfer, visible_symbols
from regraft.ir.ops.shapes import normalize_axis
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import UNKNOWN, DType, OptionalType, SequenceType, TensorType, Type

Array = np.ndarray[Any, Any]

_RAW = Trait.PURE | Trait.RAW
_SEQUENCE = Operand("sequence")
_POSITION = Operand("position", optional=True)  # None: the end


def element_of(value: Value | None) -> Type:
    """Returns the element type of a sequence value; unknown when the value is no sequence."""
    type_ = None if value is None else value.type
    if isinstance(type_, OptionalType):
        type_ = type_.element
    if isinstance(type_, SequenceType) and type_.element is not None:
        return type_.element
    return UNKNOWN


def _joined(types: Sequence[Type]) -> SequenceType:
    element: Type | None = types[0]
    for type_ in types[1:]:
        element = join(element, type_, None)
    return SequenceType(element)


def _at(position: Array | None, default: int) -> int:
    return default if position is None else int(position.reshape(-1)[0])


def _eval_insert(c: EvalContext, items: list[Any], item: Any, position: Array | None) -> list[Any]:
    at = _at(position, len(items))
    return [*items[:at], item, *items[at:]]


def _eval_erase(c: EvalContext, items: list[Any], position: Array | None) -> list[Any]:
    at = _at(position, -1) % len(items)
    return items[:at] + items[at + 1 :]


def _infer_construct(node: Node) -> Type:
    return _joined([value.type for value in node.inputs if value is not None])


def _infer_insert(node: Node) -> Type:
    items, item = node.inputs[:2]
    return SequenceType(join(element_of(items), UNKNOWN if item is None else item.type, None))


sequence_empty = OpSpec(
    name="sequence_empty",
    source="ONNX SequenceEmpty-11",
    attrs=(Attr("dtype", AttrKind.DTYPE, DType.F32),),
    traits=_RAW,
    infer=lambda node: SequenceType(TensorType(node.attrs["dtype"], None)),
    eval=lambda c: [],
)

sequence_construct = OpSpec(
    name="sequence_construct",
    source="ONNX SequenceConstruct-11",
    operands=(Operand("items", variadic=True),),
    traits=_RAW,
    infer=_infer_construct,
    eval=lambda c, *items: list(items),
)

sequence_insert = OpSpec(
    name="sequence_insert",
    source="ONNX SequenceInsert-11",
    operands=(_SEQUENCE, Operand("item"), _POSITION),
    traits=_RAW,
    infer=_infer_insert,
    eval=_eval_insert,
)

sequence_erase = OpSpec(
    name="sequence_erase",
    source="ONNX SequenceErase-11",
    operands=(_SEQUENCE, _POSITION),
    traits=_RAW,
    infer=lambda node: SequenceType(element_of(node.inputs[0])),
    eval=_eval_erase,
)

sequence_at = OpSpec(
    name="sequence_at",
    source="ONNX SequenceAt-11",
    operands=(_SEQUENCE, Operand("position")),
    traits=_RAW,
    infer=lambda node: element_of(node.inputs[0]),
    eval=lambda c, items, position: items[_at(position, 0)],
)

sequence_length = OpSpec(
    name="sequence_length",
    source="ONNX SequenceLength-11",
    operands=(_SEQUENCE,),
    traits=_RAW,
    infer=lambda node: TensorType(DType.I64, ()),
    eval=lambda c, items: np.array(len(items), np.int64),
)


def _infer_split(node: Node) -> Type:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return SequenceType(TensorType(None if x is None else x.dtype, None))
    axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    shape = list(x.shape)
    split = node.static("split")
    if split is None and node.inputs[1] is None:
        if node.attrs["keepdims"]:
            shape[axis] = 1
        else:
            del shape[axis]
        return SequenceType(TensorType(x.dtype, tuple(shape)))
    size = _part_size(shape[axis], split)
    if size is None:  # the parts differ, or only run time knows them
        return SequenceType(TensorType(x.dtype, None))
    shape[axis] = size
    return SequenceType(TensorType(x.dtype, tuple(shape)))


def _part_size(total: DimLike, split: Any) -> DimLike | None:
    """Returns the size that all parts have, or None when they differ."""
    if isinstance(split, tuple):
        return split[0] if split and all(part == split[0] for part in split) else None
    if split is None or exact_quotient(total, split) is None:
        return None
    size: DimLike = split
    return size


def _eval_split(c: EvalContext, x: Array, split: Array | None) -> list[Array]:
    axis, size = c.attrs["axis"], x.shape[c.attrs["axis"]]
    parts = c.param("split", split)
    if parts is None:
        pieces = np.split(x, size, axis) if size else []
        return [p if c.attrs["keepdims"] else p.squeeze(axis) for p in pieces]
    if isinstance(parts, int):
        return np.split(x, range(parts, size, parts), axis)
    return np.split(x, np.cumsum(parts)[:-1], axis)


split_to_sequence = OpSpec(
    name="split_to_sequence",
    source="ONNX SplitToSequence-24",
    operands=(Operand("x"), Operand("split", optional=True, either=AttrKind.DIMS)),
    attrs=(Attr("axis", AttrKind.INT, 0), Attr("keepdims", AttrKind.BOOL, True)),
    traits=_RAW,
    infer=_infer_split,
    eval=_eval_split,
)


def _infer_concat(node: Node) -> Type:
    element = element_of(node.inputs[0])
    if not isinstance(element, TensorType) or element.shape is None:
        return TensorType(element.dtype if isinstance(element, TensorType) else None, None)
    shape = list(element.shape)
    new = node.attrs["new_axis"]
    axis = normalize_axis(node, node.attrs["axis"], len(shape) + new)
    if new:
        shape.insert(axis, node.fresh_dim(0, axis))
    else:
        shape[axis] = node.fresh_dim(0, axis)
    return TensorType(element.dtype, tuple(shape))


def _eval_concat(c: EvalContext, items: list[Array]) -> Array:
    axis = c.attrs["axis"]
    return np.stack(items, axis) if c.attrs["new_axis"] else np.concatenate(items, axis)


concat_from_sequence = OpSpec(
    name="concat_from_sequence",
    source="ONNX ConcatFromSequence-11",
    operands=(_SEQUENCE,),
    attrs=(Attr("axis", AttrKind.INT), Attr("new_axis", AttrKind.BOOL, False)),
    traits=_RAW,
    infer=_infer_concat,
    eval=_eval_concat,
)


def _infer_map(node: Node) -> tuple[Type, ...]:
    body = node.bodies[0]
    stale = refresh_captures(node)
    num = len(node.inputs) - node.attrs["num_captures"]
    for formal, value in zip(body.inputs[:num], node.inputs[:num], strict=True):
        type_ = item_type(value)
        if formal.type != type_:
            formal.type, stale = type_, True
    if stale:
        reinfer(body)
    visible = visible_symbols(node.inputs)
    return tuple(SequenceType(outside(v.type, visible, None)) for v in body.outputs)


def item_type(value: Value | None) -> Type:
    """Returns what the body of `sequence_map` receives for an operand: an element, or a tensor."""
    if value is not None and isinstance(value.type, SequenceType):
        return element_of(value)
    return UNKNOWN if value is None else value.type


def _eval_map(c: EvalContext, *operands: Any) -> tuple[list[Any], ...]:
    num = len(operands) - c.attrs["num_captures"]
    values, captures = operands[:num], operands[num:]
    rows = [
        c.run_body(0, [*(v[i] if isinstance(v, list) else v for v in values), *captures])
        for i in range(len(values[0]))
    ]
    return tuple([row[i] for row in rows] for i in range(len(c.node.outputs)))


sequence_map = OpSpec(
    name="sequence_map",
    source="ONNX SequenceMap-17",
    operands=(
        Operand("operands", variadic=True),
    ),  # a sequence, more sequences or tensors, captures
    results=("results*",),
    attrs=(Attr("num_captures", AttrKind.INT, 0),),
    traits=_RAW | Trait.CAPTURES,
    infer=_infer_map,
    eval=_eval_map,
    num_bodies=1,
)


OPS: tuple[OpSpec, ...] = (
    sequence_empty,
    sequence_construct,
    sequence_insert,
    sequence_erase,
    sequence_at,
    sequence_length,
    split_to_sequence,
    concat_from_sequence,
    sequence_map,
)
