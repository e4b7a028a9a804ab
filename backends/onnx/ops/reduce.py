"""Emitters of reductions: `axes` is an attribute before opset 18, except for ReduceSum."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, Emitter
from regraft.backends.onnx.emitter import EmitContext as Context
from regraft.ir.graph import Node
from regraft.ir.ops import reduce
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

_OPERAND_SINCE = 18
_BOOL_SINCE = 20


def _attribute(op_type: str) -> Emitter:
    def emit(e: Context) -> None:
        attrs = e.node.attrs
        e.emit(op_type, e.inputs[:1], axes=attrs["axes"], keepdims=attrs["keepdims"])

    return emit


def _operand(op_type: str) -> Emitter:
    def emit(e: Context) -> None:
        attrs, axes = e.node.attrs, e.node.attrs["axes"]
        x, operand = e.name(e.node.inputs[0]), e.node.inputs[1]
        inputs, noop = [x], attrs["empty_is_none"] if operand is not None else axes == ()
        if operand is not None or axes:
            inputs.append(e.param("axes"))
        e.emit(
            op_type, inputs, keepdims=attrs["keepdims"],
            noop_with_empty_axes=True if noop else None,
        )  # fmt: skip

    return emit


def _min_opset(node: Node) -> int:
    """An operand or an empty list of axes has no attribute form."""
    if node.op in (reduce.reduce_max, reduce.reduce_min) and node.output.dtype is DType.BOOL:
        return _BOOL_SINCE
    return _OPERAND_SINCE if node.inputs[1] is not None or node.attrs["axes"] == () else 13


def _row(op_type: str, spec: OpSpec) -> Emit:
    if spec is reduce.reduce_sum:
        return Emit(spec, {13: _operand(op_type)})
    return Emit(spec, {13: _attribute(op_type), _OPERAND_SINCE: _operand(op_type)}, _min_opset)


EMITS: tuple[Emit, ...] = tuple(
    _row(op_type, spec) for op_type, spec in reduce.BY_ONNX_NAME.items()
)
