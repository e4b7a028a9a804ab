"""Importers of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.graph import Graph, Value
from regraft.ir.ops import control as ops
from regraft.ir.ops.bodies import visible_symbols, widen
from regraft.ir.types import DType, TensorType, Type

Formals = Callable[[Sequence[Type]], Sequence[Type]]


def _if(item: NodeImport) -> Sequence[Value]:
    cond = item.require(0)
    known = cond.content[0] if isinstance(cond.content, tuple) else cond.content
    if isinstance(known, int):
        # Only the branch that runs is typed: exporters leave branches that do not fit the shapes.
        return item.scope.inline(item.attrs["then_branch" if known else "else_branch"])
    bodies, captures = item.bodies(["then_branch", "else_branch"], [[], []])
    return item.b.node(
        ops.if_, cond, *captures,
        num_outputs=item.num_outputs, bodies=bodies, num_captures=len(captures),
    ).outputs  # fmt: skip


def _body(
    item: NodeImport, carried: Sequence[Value], formals: Formals, first_result: int
) -> tuple[Graph, list[Value]]:
    """Imports a loop body whose carried inputs accept both their first and their next values.

    A body is imported anew when the types it gives need wider ones: what its nodes resolved to
    static sizes depends on them.
    """
    b = item.b
    types = [value.type for value in carried]
    known = set(b.graph.scope.weights)
    while True:
        (body,), captures = item.bodies(["body"], [formals(types)])
        nexts = [v.type for v in body.outputs[first_result : first_result + len(types)]]
        visible = visible_symbols([*item.inputs, *captures])
        wider = widen(types, nexts, visible, b.graph.scope.fresh)
        if wider == types:
            return body, captures
        item.discard([body], known)
        types = wider


def _loop(item: NodeImport) -> Sequence[Value]:
    proto: onnx.GraphProto = item.attrs["body"]
    carried = [item.require(i) for i in range(2, len(item.inputs))]
    if len(proto.input) != 2 + len(carried):
        raise item.error(
            f"the body takes {len(proto.input)} inputs, expected {2 + len(carried)}",
            hint="iteration number, condition, then one per carried value",
        )
    head = [_scalar(proto.input[0], DType.I64), _scalar(proto.input[1], DType.BOOL)]
    body, captures = _body(item, carried, lambda types: [*head, *types], 1)
    return item.b.node(
        ops.loop, item.input(0), item.input(1), *carried, *captures,
        num_outputs=len(body.outputs) - 1, bodies=(body,),
        num_carried=len(carried), num_captures=len(captures),
    ).outputs  # fmt: skip


def _scalar(info: onnx.ValueInfoProto, dtype: DType) -> Type:
    """Type of the iteration number or condition: a scalar, or one element where so declared."""
    declared = info.type.tensor_type
    one = declared.HasField("shape") and len(declared.shape.dim) == 1
    return TensorType(dtype, (1,) if one else ())


def _scan(item: NodeImport) -> Sequence[Value]:
    scans = int(item.attrs["num_scan_inputs"])
    num = len(item.inputs) - scans
    values = [item.require(i) for i in range(len(item.inputs))]
    axes = _axes(item.attr("scan_input_axes", (0,) * scans), values[num:])
    slices = [ops.slice_type(v.type, a) for v, a in zip(values[num:], axes, strict=True)]
    body, captures = _body(item, values[:num], lambda types: [*types, *slices], 0)
    outputs = len(body.outputs) - num
    return item.b.node(
        ops.scan, *values, *captures, num_outputs=len(body.outputs), bodies=(body,),
        num_carried=num, num_scanned=scans, num_captures=len(captures),
        input_axes=axes, input_reversed=item.attr("scan_input_directions", (0,) * scans),
        output_axes=_axes(item.attr("scan_output_axes", (0,) * outputs), body.outputs[num:], 1),
        output_reversed=item.attr("scan_output_directions", (0,) * outputs),
    ).outputs  # fmt: skip


def _axes(axes: Sequence[int], values: Sequence[Value], more: int = 0) -> tuple[int, ...]:
    """Makes axes non-negative where the rank is known; `more` counts axes not yet in the value."""
    return tuple(
        axis if value.rank is None or axis >= 0 else axis + value.rank + more
        for axis, value in zip(axes, values, strict=True)
    )


def _scan_8(item: NodeImport) -> Sequence[Value]:
    """Scan-8 has a batch axis before the sequence axis: a scan over sequences inside one over rows.

    Operand 0, the lengths of the sequences, is absent in what exporters wrote; given, the node is
    kept opaque.
    """
    if item.input(0) is not None:
        return item.opaque()
    scans = int(item.attrs["num_scan_inputs"])
    values = [item.require(i) for i in range(1, len(item.inputs))]
    num = len(values) - scans
    rows = [ops.slice_type(value.type, 0) for value in values]
    slices = [ops.slice_type(type_, 0) for type_ in rows[num:]]
    body, captures = item.bodies(["body"], [[*rows[:num], *slices]])
    outer = Graph(item.b.graph.scope)
    for value, type_ in zip(values, rows, strict=True):
        outer.add_input(value.name, type_)
    for capture in captures:
        outer.add_input(capture.name, capture.type).content = capture.content
    outputs = len(body[0].outputs) - num
    inner = outer.create(
        ops.scan,
        outer.inputs,
        {
            "num_carried": num,
            "num_scanned": scans,
            "num_captures": len(captures),
            "input_axes": (0,) * scans,
            "input_reversed": item.attr("directions", (0,) * scans),
            "output_axes": (0,) * outputs,
            "output_reversed": (0,) * outputs,
        },
        num_outputs=len(body[0].outputs),
        bodies=body,
        loc=item.b.loc,
    )
    for name, result in zip(body[0].output_names, inner.outputs, strict=True):
        outer.add_output(name, result)
    return item.b.node(
        ops.scan, *values, *captures, num_outputs=len(outer.outputs), bodies=(outer,),
        num_carried=0, num_scanned=len(values), num_captures=len(captures),
        input_axes=(0,) * len(values), input_reversed=(0,) * len(values),
        output_axes=(0,) * len(outer.outputs), output_reversed=(0,) * len(outer.outputs),
    ).outputs  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    Import("If", {1: _if}),
    Import("Loop", {1: _loop}),
    Import("Scan", {8: _scan_8, 9: _scan}),
)
