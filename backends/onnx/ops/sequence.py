"""Emitters of sequence and optional operators."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.backends.onnx.tensors import type_to_proto
from regraft.ir.graph import Node
from regraft.ir.ops import sequence as ops
from regraft.ir.types import OptionalType


def _split(e: EmitContext) -> None:
    attrs = e.node.attrs
    inputs = [e.name(e.node.inputs[0])]
    if attrs["split"] is not None or e.node.inputs[1] is not None:
        inputs.append(e.param("split"))
    e.emit("SplitToSequence", inputs, axis=attrs["axis"], keepdims=int(attrs["keepdims"]))


def _map(e: EmitContext) -> None:
    num = len(e.node.inputs) - e.node.attrs["num_captures"]
    captures = [value for value in e.node.inputs[num:] if value is not None]
    names = [e.name(value) for value in e.node.inputs[:num]]
    e.emit(
        "SequenceMap", names, [e.name(v) for v in e.node.outputs], body=e.body(0, captures)
    )  # fmt: skip


def _optional(e: EmitContext) -> None:
    element = e.node.attrs["element"]
    e.emit("Optional", e.inputs, type=None if element is None else type_to_proto(element))


def _takes_optional(node: Node) -> int:
    """Before opset 18 the operand had to be an optional and present."""
    x = node.inputs[0]
    return 15 if x is not None and isinstance(x.type, OptionalType) else 18


EMITS: tuple[Emit, ...] = (
    Emit(ops.sequence_empty, {13: direct("SequenceEmpty", "dtype")}),
    Emit(ops.sequence_construct, {13: direct("SequenceConstruct")}),
    Emit(ops.sequence_insert, {13: direct("SequenceInsert")}),
    Emit(ops.sequence_erase, {13: direct("SequenceErase")}),
    Emit(ops.sequence_at, {13: direct("SequenceAt")}),
    Emit(ops.sequence_length, {13: direct("SequenceLength")}),
    Emit(ops.split_to_sequence, {13: _split}),
    Emit(ops.concat_from_sequence, {13: direct("ConcatFromSequence", "axis", "new_axis")}),
    Emit(ops.sequence_map, {17: _map}),
    Emit(ops.optional, {15: _optional}),
    Emit(
        ops.optional_has_element, {15: direct("OptionalHasElement")}, min_opset=_takes_optional
    ),
    Emit(
        ops.optional_get_element, {15: direct("OptionalGetElement")}, min_opset=_takes_optional
    ),
)
