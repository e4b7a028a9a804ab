"""Emitters of operators on optional values."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.backends.onnx.tensors import type_to_proto
from regraft.ir.graph import Node
from regraft.ir.ops import optional as ops
from regraft.ir.types import OptionalType


def _optional(e: EmitContext) -> None:
    element = e.node.attrs["element"]
    e.emit("Optional", e.inputs, type=None if element is None else type_to_proto(element))


def _takes_optional(node: Node) -> int:
    """Before opset 18 the operand had to be an optional and present."""
    x = node.inputs[0]
    return 15 if x is not None and isinstance(x.type, OptionalType) else 18


EMITS: tuple[Emit, ...] = (
    Emit(ops.optional, {15: _optional}),
    Emit(ops.optional_has_element, {15: direct("OptionalHasElement")}, min_opset=_takes_optional),
    Emit(ops.optional_get_element, {15: direct("OptionalGetElement")}, min_opset=_takes_optional),
)
