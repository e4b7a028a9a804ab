"""Emitters of If, Loop and Scan."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.ir.graph import Value
from regraft.ir.ops import control as ops


def _captures(e: EmitContext) -> list[Value]:
    values = e.node.inputs[len(e.node.inputs) - e.node.attrs["num_captures"] :]
    return [value for value in values if value is not None]


def _operands(e: EmitContext) -> list[str]:
    names = [e.name(v) for v in e.node.inputs]
    return names[: len(names) - e.node.attrs["num_captures"]]


def _results(e: EmitContext) -> list[str]:
    return [e.name(value) for value in e.node.outputs]  # a body gives all of its results


def _if(e: EmitContext) -> None:
    captures = _captures(e)
    e.emit(
        "If", _operands(e), _results(e),
        then_branch=e.body(0, captures), else_branch=e.body(1, captures),
    )  # fmt: skip


def _loop(e: EmitContext) -> None:
    e.emit("Loop", _operands(e), _results(e), body=e.body(0, _captures(e)))


def _scan(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "Scan", _operands(e), _results(e), body=e.body(0, _captures(e)),
        num_scan_inputs=attrs["num_scanned"],
        scan_input_axes=_unless_zero(attrs["input_axes"]),
        scan_input_directions=_unless_zero(attrs["input_reversed"]),
        scan_output_axes=_unless_zero(attrs["output_axes"]),
        scan_output_directions=_unless_zero(attrs["output_reversed"]),
    )  # fmt: skip


def _unless_zero(values: tuple[int, ...]) -> tuple[int, ...] | None:
    return values if any(values) else None


EMITS: tuple[Emit, ...] = (
    Emit(ops.if_, {13: _if}),
    Emit(ops.loop, {13: _loop}),
    Emit(ops.scan, {13: _scan}),
)
