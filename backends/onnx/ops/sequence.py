"""Emitters of sequence operators."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.ops import sequence as ops


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
)
