"""What the structure of one node must be, whatever its operands hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regraft.ir.attr_kinds import fits_kind
from regraft.ir.constants import weight
from regraft.ir.dims import Dim, symbols_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.opspec import Trait
from regraft.ir.reinfer import Finding, contradicts
from regraft.ir.types import SparseTensorType, TensorType, Type


def form_findings(node: Node) -> Iterator[Finding]:
    """Yields what is wrong with slots, attributes and bodies; inference relies on all of it."""
    yield from _slots(node)
    yield from _attrs(node)
    yield from _bodies(node)


def place_findings(node: Node) -> Iterator[Finding]:
    """Yields what is wrong with the node's place: its operands, use lists, symbols and weight."""
    graph = node.graph
    if graph is None:
        return
    for idx, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer
        if value.owner is not None and value.owner is not graph:
            hint = "captured values are operands of the node and inputs of its bodies"
            yield "V001", f"operand {idx} {value!r} belongs to another graph", hint
        elif value.owner is None or (producer is not None and not producer.is_before(node)):
            yield "V001", f"operand {idx} {value!r} is not defined before its use", None
        if (node, idx) not in value.uses:
            yield "V002", f"operand {idx} {value!r} does not list this use", None
    for idx, value in enumerate(node.outputs):
        if value.producer is not node or value.index != idx:
            yield "V003", f"result {idx} does not know its producer and position", None
        yield from use_findings(value)
        yield from symbol_findings(value, graph)
    if node.op is weight:
        yield from _weight(node, graph)


def use_findings(value: Value) -> Iterator[Finding]:
    """Yields the entries of a use list that are no uses."""
    for user, idx in value.uses:
        slots = user.outputs if isinstance(user, Graph) else user.inputs
        gone = isinstance(user, Node) and user.graph is None
        if gone or idx >= len(slots) or slots[idx] is not value:
            yield "V002", f"{value!r} lists a use by {user!r} that is none", None


def symbol_findings(value: Value, graph: Graph) -> Iterator[Finding]:
    """Yields the symbols of a type that the scope does not have."""
    for symbol in symbols_of(_dims(value.type)):
        known = graph.scope.symbols.get(symbol.name)
        if known is None:
            hint = "make symbols through the scope: `scope.symbol(name)`"
            yield "V010", f"symbol `{symbol}` of {value!r} is unknown", hint
        elif known != symbol:
            yield "V010", f"symbol `{symbol}` of {value!r} has other facts", None


def _dims(type_: Type | None) -> Iterator[Dim]:
    while type_ is not None:
        if isinstance(type_, TensorType | SparseTensorType):
            yield from (dim for dim in type_.shape or () if isinstance(dim, Dim))
            return
        type_ = getattr(type_, "element", None)


def _slots(node: Node) -> Iterator[Finding]:
    op = node.op
    slots, given = len(op.operands), len(node.inputs)
    if given > slots and not op.is_variadic:
        yield "V003", f"`{op.name}` takes {slots} operands, {given} are given", None
    if given < slots - op.is_variadic:
        yield "V003", f"`{op.name}` has {slots} operand slots, {given} are filled", None
    many = any(name.endswith("*") for name in op.results)
    needed = sum(not name.endswith(("*", "?")) for name in op.results)
    if len(node.outputs) < needed or (len(node.outputs) > len(op.results) and not many):
        message = f"`{op.name}` gives {len(op.results)} results, {len(node.outputs)} are named"
        yield "V003", message, None
    for idx, operand in enumerate(op.operands):
        if operand.variadic or idx >= given:
            continue
        present = node.inputs[idx] is not None
        if operand.either is None:
            if not present and not operand.optional:
                yield "V004", f"operand `{operand.name}` is missing", None
            continue
        static = node.attrs.get(operand.name) is not None
        if present and static:
            message = f"`{operand.name}` is given both as an operand and as an attribute"
            yield "V005", message, None
        if not present and not static and not operand.optional:
            message = f"`{operand.name}` is neither an operand nor an attribute"
            yield "V005", message, None


def _attrs(node: Node) -> Iterator[Finding]:
    known = node.op.all_attrs
    for name in node.attrs:
        if name not in known:
            yield "V006", f"unknown attribute `{name}`", None
    for name, attr in known.items():
        if name not in node.attrs:
            yield "V006", f"attribute `{name}` is missing", None
            continue
        value: Any = node.attrs[name]
        if not (value is None and attr.default is None) and not fits_kind(value, attr.kind):
            message = f"attribute `{name}` = {value!r} is not of kind {attr.kind.value}"
            yield "V006", message, None


def _bodies(node: Node) -> Iterator[Finding]:
    op = node.op
    if op.num_bodies and len(node.bodies) != op.num_bodies:
        message = f"`{op.name}` has {op.num_bodies} bodies, {len(node.bodies)} are given"
        yield "V007", message, None
    captures = node.attrs.get("num_captures", 0) if Trait.CAPTURES in op.traits else 0
    outer = list(node.inputs[len(node.inputs) - captures :])
    if len(outer) != captures:
        yield "V007", f"{captures} captures, but {len(node.inputs)} operands", None
        return
    for idx, body in enumerate(node.bodies):
        if body.parent is not node:
            yield "V007", f"body {idx} does not know its node", None
        if len(body.inputs) < captures:
            message = f"body {idx} has {len(body.inputs)} inputs for {captures} captures"
            yield "V007", message, None
            continue
        for inner, value in zip(body.inputs[len(body.inputs) - captures :], outer, strict=True):
            if value is None:
                yield "V007", f"body {idx}: a captured operand is absent", None
            elif contradicts(inner.type, value.type):
                message = f"body {idx}: {inner!r} captures {value!r} of another type"
                yield "V007", message, None


def _weight(node: Node, graph: Graph) -> Iterator[Finding]:
    name = str(node.attrs.get("name"))
    if name not in graph.scope.weights:
        yield "V009", f"the module has no weight `{name}`", None
        return
    stored = graph.scope.weights[name]
    held = TensorType(stored.dtype, stored.shape)
    if node.output.type != held:
        message = f"weight `{name}` is {held}, the node says {node.output.type}"
        yield "V009", message, None
