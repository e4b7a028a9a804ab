"""If, loop, scan and sequence_map as Python statements: each body is an indented block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from regraft.backends.torch.library.stacking import stack_rows
from regraft.backends.torch.naming import variable_hint
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.ops import control as ops
from regraft.ir.ops.sequence import sequence_map
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType, SequenceType

if TYPE_CHECKING:
    from regraft.backends.torch.graph_emitter import GraphEmitter


def _captures(node: Node) -> list[Value]:
    values = node.inputs[len(node.inputs) - node.attrs["num_captures"] :]
    return [value for value in values if value is not None]


def _take_results(graph: GraphEmitter, node: Node) -> list[str]:
    """Gives every result of a control node its variable."""
    for value in node.outputs:
        graph.names[value] = graph.variables.take(variable_hint(value))
    return [graph.names[value] for value in node.outputs]


def _note_results(graph: GraphEmitter, node: Node) -> None:
    anchor = graph.lines.anchor()
    for value in node.outputs:
        graph.sizes.note(value, graph.names[value], anchor)


def _if(graph: GraphEmitter, node: Node) -> None:
    cond = node.inputs[0]
    if cond is None:
        raise AssertionError("an `if` without condition")
    condition = graph.expression(cond)
    results = _take_results(graph, node)
    for head, body in ((f"if {condition}:", node.bodies[0]), ("else:", node.bodies[1])):
        graph.lines.add(head)
        with graph.block():
            values = graph.emit_body(body, (), _captures(node))
            _assign(graph, results, values)
    _note_results(graph, node)


def _assign(graph: GraphEmitter, targets: Sequence[str], values: Sequence[str]) -> None:
    """Adds `a, b = x, y`, whose sides are read before they are written."""
    pairs = [(a, b) for a, b in zip(targets, values, strict=True) if a != b]
    if pairs:
        names = [name for name, _ in pairs]
        graph.lines.add(f"{', '.join(names)} = {', '.join(value for _, value in pairs)}", *names)


def _loop(graph: GraphEmitter, node: Node) -> None:
    body, num = node.bodies[0], node.attrs["num_carried"]
    trip, cond = node.inputs[0], node.inputs[1]
    initial = [v for v in node.inputs[2 : 2 + num] if v is not None]
    starts = [graph.expression(value) for value in initial]
    results = _take_results(graph, node)
    carried, rows = results[:num], results[num:]
    _assign(graph, carried, starts)
    for name in rows:
        graph.lines.add(f"{name} = []", name)
    step = graph.variables.take("step")
    goes_on = "" if _is_true(cond) else graph.variables.take("going")
    if goes_on and cond is not None:
        graph.lines.add(f"{goes_on} = {graph.expression(cond)}", goes_on)
    stays = body.outputs[0] is body.inputs[1] or _is_true(body.outputs[0])
    if not goes_on and not stays:
        goes_on = graph.variables.take("going")
        graph.lines.add(f"{goes_on} = True", goes_on)
    limit = "" if trip is None else f"int({graph.expression(trip)})"
    if limit and not goes_on:
        graph.lines.add(f"for {step} in range({limit}):", step)
    else:
        tests = [test for test in (goes_on, limit and f"{step} < {limit}") if test]
        graph.lines.add(f"{step} = 0", step)
        graph.lines.add(f"while {' and '.join(tests) or 'True'}:")
    with graph.block():
        formals = [
            _scalar(graph, body.inputs[0], f"{step}", "torch.int64"),
            _scalar(graph, body.inputs[1], "True", "torch.bool"),
            *carried,
        ]
        again, *values = graph.emit_body(body, formals, _captures(node))
        for name, value in zip(rows, values[num:], strict=True):
            graph.lines.add(f"{name}.append({value})")
        targets, sources = list(carried), values[:num]
        if goes_on and not stays:
            targets, sources = [*targets, goes_on], [*sources, again]
        _assign(graph, targets, sources)
        if not limit or goes_on:
            graph.lines.add(f"{step} += 1")
    for name, row in zip(rows, body.outputs[1 + num :], strict=True):
        _stack(graph, name, row, 0)
    graph.variables.release(step)
    if goes_on:
        graph.variables.release(goes_on)
    _note_results(graph, node)


def _is_true(value: Value | None) -> bool:
    if value is None:
        return True
    array = constant_of(value, 1)
    return array is not None and bool(array.all())


def _scalar(graph: GraphEmitter, formal: Value, value: str, dtype: str) -> str:
    """Returns a variable with the iteration number or condition, when the body reads it."""
    if not formal.num_uses:
        return "None"
    shape = (1,) * (formal.rank or 0)
    name = graph.variables.take(variable_hint(formal))
    device = graph.device()
    graph.lines.add(f"{name} = torch.full({shape}, {value}, dtype={dtype}, device={device})", name)
    return name


def _stack(graph: GraphEmitter, rows: str, value: Value, axis: int, source: str = "") -> None:
    """Adds the line that stacks the rows of all iterations."""
    dtype = value.dtype or DType.F32
    # what no value outside shows is 0, as nothing was collected
    dims = [dim if graph.sizes.can_read(dim) else 0 for dim in value.shape or ()]
    shape = f"({', '.join(map(graph.size, dims))}{',' * (len(dims) == 1)})"
    call = graph.helper(stack_rows)
    graph.lines.add(
        f"{rows} = {call}({source or rows}, {axis}, {shape}, {graph.dtype(dtype)}, "
        f"{graph.device()})",
        rows,
    )


def _scan(graph: GraphEmitter, node: Node) -> None:
    attrs, body = node.attrs, node.bodies[0]
    num, scans = attrs["num_carried"], attrs["num_scanned"]
    operands = [v for v in node.inputs[: num + scans] if v is not None]
    starts = [graph.expression(value) for value in operands]
    results = _take_results(graph, node)
    carried, rows = results[:num], results[num:]
    _assign(graph, carried, starts[:num])
    for name in rows:
        graph.lines.add(f"{name} = []", name)
    scanned = []
    settings = zip(starts[num:], attrs["input_axes"], attrs["input_reversed"], strict=True)
    for expression, axis, is_reversed in settings:
        moved = expression if axis == 0 else f"{expression}.movedim({axis}, 0)"
        scanned.append(f"{moved}.flip(0)" if is_reversed else moved)
    items = [graph.variables.take(variable_hint(v)) for v in body.inputs[num : num + scans]]
    heads = f"{', '.join(items)}{',' * (len(items) == 1)}"
    graph.lines.add(f"for {heads} in zip({', '.join(scanned)}, strict=True):", *items)
    with graph.block():
        values = graph.emit_body(body, [*carried, *items], _captures(node))
        for name, value in zip(rows, values[num:], strict=True):
            graph.lines.add(f"{name}.append({value})")
        _assign(graph, carried, values[:num])
    for name in items:
        graph.variables.release(name)
    outputs = zip(
        rows, body.outputs[num:], attrs["output_axes"], attrs["output_reversed"], strict=True
    )
    for name, row, axis, is_reversed in outputs:
        _stack(graph, name, row, axis, f"{name}[::-1]" if is_reversed else "")
    _note_results(graph, node)


def _sequence_map(graph: GraphEmitter, node: Node) -> None:
    body = node.bodies[0]
    values = node.inputs[: len(node.inputs) - node.attrs["num_captures"]]
    operands = [(v, graph.expression(v)) for v in values if v is not None]
    results = _take_results(graph, node)
    for name in results:
        graph.lines.add(f"{name} = []", name)
    formals, items, lists = [], [], []
    for (value, text), formal in zip(operands, body.inputs, strict=False):
        if isinstance(value.type, SequenceType):
            items.append(graph.variables.take(variable_hint(formal)))
            lists.append(text)
            text = items[-1]
        formals.append(text)
    heads = f"{', '.join(items)}{',' * (len(items) == 1)}"
    graph.lines.add(f"for {heads} in zip({', '.join(lists)}, strict=True):", *items)
    with graph.block():
        outputs = graph.emit_body(body, formals, _captures(node))
        for name, output in zip(results, outputs, strict=True):
            graph.lines.add(f"{name}.append({output})")
    for name in items:
        graph.variables.release(name)


STATEMENTS: dict[OpSpec, Callable[[GraphEmitter, Node], None]] = {
    ops.if_: _if,
    ops.loop: _loop,
    ops.scan: _scan,
    sequence_map: _sequence_map,
}
"""Operators that are statements rather than expressions."""
