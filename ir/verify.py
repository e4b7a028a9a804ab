"""Checks that IR keeps its rules; reports all problems at once.

| code | rule |
|---|---|
| V001 | an operand is defined before its use, in the same graph |
| V002 | every use stands in the value's use list, and every entry there is a use |
| V003 | operands and results fit the operator's slots |
| V004 | a required operand is present |
| V005 | an *either* parameter is an operand or an attribute, not both, and not neither |
| V006 | attributes are those of the operator and of their kinds |
| V007 | bodies: their number, and one input of a fitting type per capture |
| V008 | graph outputs are defined in the graph and have distinct names |
| V009 | a weight exists and has the recorded type |
| V010 | every symbol is the scope's |
| V011 | graph inputs have distinct names and know their graph and position |
| V012 | links, order labels and counts of the node list agree |
| V013 | inference gives the recorded type and content (level `full`) |
| V014 | inference accepts the operands (level `full`) |
| V015 | states name inputs and outputs of the graph |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from regraft.ir.attr_kinds import fits_kind
from regraft.ir.constants import weight
from regraft.ir.dims import Dim, symbols_of
from regraft.ir.errors import VerifyError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.reinfer import contradicts, reinfer_problems
from regraft.ir.text.printer import print_node
from regraft.ir.types import SparseTensorType, TensorType, Type

Level = Literal["structure", "full"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule.

    Args:
        code: `V001`, … (the table above).
        where: The node or graph, in one line.
        message: What is wrong.
        hint: What to do, or None.
    """

    code: str
    where: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}\n  at {self.where}"
        return text if self.hint is None else f"{text}\n  hint: {self.hint}"


def verify(
    module: Module, level: Level = "structure", nodes: Iterable[Node] | None = None
) -> list[Problem]:
    """Returns every broken rule; changes nothing.

    Args:
        module: The module.
        level: `structure`, or `full` for inference as well.
        nodes: Only these nodes and what they use (erased ones are skipped); None checks all.

    Cost: O(nodes checked); `full` about as much as inferring them.
    """
    problems: list[Problem] = []
    if nodes is None:
        problems += _module(module)
        nodes = list(module.graph.walk())
    nodes = [node for node in nodes if node.graph is not None]
    for node in nodes:
        problems += _node(node)
    if level == "full" and not problems:
        # inference reads operands, attributes and weights: it needs them to be right
        problems += [
            Problem(code, print_node(node), message, hint)
            for node in nodes
            for code, message, hint in reinfer_problems(node)
        ]
    return problems


def check(module: Module, level: Level = "structure", nodes: Iterable[Node] | None = None) -> None:
    """Raises when a rule is broken; see `verify`.

    Raises:
        VerifyError: Listing all problems.
    """
    problems = verify(module, level, nodes)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise VerifyError("\n".join([f"the IR has {count}", *map(str, problems)]))


def _module(module: Module) -> Iterator[Problem]:
    inputs = [value.name for value in module.graph.inputs]
    outputs = module.graph.output_names
    for state in module.states:
        gone = [] if state.input in inputs else [f"input `{state.input}`"]
        gone += [] if state.output in outputs else [f"output `{state.output}`"]
        for end in gone:
            message = f"state `{state.name}` names {end}, which does not exist"
            yield Problem("V015", f"module `{module.name}`", message)
    where = f"inputs of graph `{module.name}`"
    for idx, name in enumerate(inputs):
        if name is None:
            yield Problem("V011", where, f"input {idx} has no name")
        elif name in inputs[:idx]:
            yield Problem("V011", where, f"two inputs are named `{name}`")
    yield from _graph(module.graph, f"graph `{module.name}`")
    for node in module.graph.walk():
        for idx, body in enumerate(node.bodies):
            yield from _graph(body, f"body {idx} of {print_node(node)}")


def _graph(graph: Graph, where: str) -> Iterator[Problem]:
    for idx, value in enumerate(graph.inputs):
        if value.graph is not graph or value.index != idx or value.producer is not None:
            yield Problem("V011", where, f"input {idx} does not know its graph and position")
        yield from _uses(value, where)
        yield from _symbols(value, graph, where)
    yield from _links(graph, where)
    for idx, name in enumerate(graph.output_names):
        if name in graph.output_names[:idx]:
            yield Problem("V008", where, f"two outputs are named `{name}`")
    if len(graph.output_names) != len(graph.outputs):
        message = f"{len(graph.outputs)} outputs have {len(graph.output_names)} names"
        yield Problem("V008", where, message)
    for idx, value in enumerate(graph.outputs):
        if value.owner is not graph:
            yield Problem("V008", where, f"output {idx} {value!r} is not defined in this graph")
        if (graph, idx) not in value.uses:
            yield Problem("V002", where, f"output {idx} is no entry of the use list of {value!r}")


def _links(graph: Graph, where: str) -> Iterator[Problem]:
    count, prev, order = 0, None, None
    node = graph.first
    while node is not None:
        count += 1
        if node.prev is not prev or node.graph is not graph:
            yield Problem("V012", where, f"broken link before {print_node(node)}")
            return
        if order is not None and node.order <= order:
            yield Problem("V012", where, f"order label not above its predecessor: {node!r}")
        if count > graph.num_nodes:
            break
        prev, order, node = node, node.order, node.next
    if count != graph.num_nodes or graph.last is not prev:
        yield Problem(
            "V012", where, f"the graph counts {graph.num_nodes} nodes, {count} are linked"
        )


def _node(node: Node) -> Iterator[Problem]:
    where = print_node(node)
    graph = node.graph
    if graph is None:
        return
    for idx, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer
        if value.owner is not graph or (producer is not None and not producer.is_before(node)):
            is_other = value.owner is not graph and value.owner is not None
            message = (
                f"operand {idx} {value!r} belongs to another graph"
                if is_other
                else f"operand {idx} {value!r} is not defined before its use"
            )
            hint = "captured values are operands of the node and inputs of its bodies"
            yield Problem("V001", where, message, hint if is_other else None)
        if (node, idx) not in value.uses:
            yield Problem("V002", where, f"operand {idx} {value!r} does not list this use")
    for idx, value in enumerate(node.outputs):
        if value.producer is not node or value.index != idx:
            yield Problem("V003", where, f"result {idx} does not know its producer and position")
        yield from _uses(value, where)
        yield from _symbols(value, graph, where)
    yield from _slots(node, where)
    yield from _attrs(node, where)
    yield from _bodies(node, where)
    if node.op is weight:
        yield from _weight(node, graph, where)


def _uses(value: Value, where: str) -> Iterator[Problem]:
    for user, idx in value.uses:
        slots = user.outputs if isinstance(user, Graph) else user.inputs
        gone = isinstance(user, Node) and user.graph is None
        if gone or idx >= len(slots) or slots[idx] is not value:
            yield Problem("V002", where, f"{value!r} lists a use by {user!r} that is none")


def _symbols(value: Value, graph: Graph, where: str) -> Iterator[Problem]:
    for symbol in symbols_of(_dims(value.type)):
        known = graph.scope.symbols.get(symbol.name)
        if known is None:
            hint = "make symbols through the scope: `scope.symbol(name)`"
            yield Problem("V010", where, f"symbol `{symbol}` of {value!r} is unknown", hint)
        elif known != symbol:
            yield Problem("V010", where, f"symbol `{symbol}` of {value!r} has other facts")


def _dims(type_: Type | None) -> Iterator[Dim]:
    while type_ is not None:
        if isinstance(type_, TensorType | SparseTensorType):
            yield from (dim for dim in type_.shape or () if isinstance(dim, Dim))
            return
        type_ = getattr(type_, "element", None)


def _slots(node: Node, where: str) -> Iterator[Problem]:
    op = node.op
    slots, given = len(op.operands), len(node.inputs)
    if given > slots and not op.is_variadic:
        yield Problem("V003", where, f"`{op.name}` takes {slots} operands, {given} are given")
    if given < slots - op.is_variadic:
        yield Problem("V003", where, f"`{op.name}` has {slots} operand slots, {given} are filled")
    many = any(name.endswith("*") for name in op.results)
    needed = sum(not name.endswith(("*", "?")) for name in op.results)
    if len(node.outputs) < needed or (len(node.outputs) > len(op.results) and not many):
        message = f"`{op.name}` gives {len(op.results)} results, {len(node.outputs)} are named"
        yield Problem("V003", where, message)
    for idx, operand in enumerate(op.operands):
        if operand.variadic or idx >= given:
            continue
        present = node.inputs[idx] is not None
        if operand.either is None:
            if not present and not operand.optional:
                yield Problem("V004", where, f"operand `{operand.name}` is missing")
            continue
        static = node.attrs.get(operand.name) is not None
        if present and static:
            message = f"`{operand.name}` is given both as an operand and as an attribute"
            yield Problem("V005", where, message)
        if not present and not static and not operand.optional:
            message = f"`{operand.name}` is neither an operand nor an attribute"
            yield Problem("V005", where, message)


def _attrs(node: Node, where: str) -> Iterator[Problem]:
    known = node.op.all_attrs
    for name in node.attrs:
        if name not in known:
            yield Problem("V006", where, f"unknown attribute `{name}`")
    for name, attr in known.items():
        if name not in node.attrs:
            yield Problem("V006", where, f"attribute `{name}` is missing")
            continue
        value: Any = node.attrs[name]
        if not (value is None and attr.default is None) and not fits_kind(value, attr.kind):
            message = f"attribute `{name}` = {value!r} is not of kind {attr.kind.value}"
            yield Problem("V006", where, message)


def _bodies(node: Node, where: str) -> Iterator[Problem]:
    op = node.op
    if op.num_bodies and len(node.bodies) != op.num_bodies:
        message = f"`{op.name}` has {op.num_bodies} bodies, {len(node.bodies)} are given"
        yield Problem("V007", where, message)
    captures = node.attrs.get("num_captures", 0) if Trait.CAPTURES in op.traits else 0
    outer = list(node.inputs[len(node.inputs) - captures :])
    if len(outer) != captures:
        yield Problem("V007", where, f"{captures} captures, but {len(node.inputs)} operands")
        return
    for idx, body in enumerate(node.bodies):
        if body.parent is not node:
            yield Problem("V007", where, f"body {idx} does not know its node")
        if len(body.inputs) < captures:
            message = f"body {idx} has {len(body.inputs)} inputs for {captures} captures"
            yield Problem("V007", where, message)
            continue
        for inner, value in zip(body.inputs[len(body.inputs) - captures :], outer, strict=True):
            if value is None:
                yield Problem("V007", where, f"body {idx}: a captured operand is absent")
            elif contradicts(inner.type, value.type):
                message = f"body {idx}: {inner!r} captures {value!r} of another type"
                yield Problem("V007", where, message)


def _weight(node: Node, graph: Graph, where: str) -> Iterator[Problem]:
    name = str(node.attrs.get("name"))
    if name not in graph.scope.weights:
        yield Problem("V009", where, f"the module has no weight `{name}`")
        return
    stored = graph.scope.weights[name]
    held = TensorType(stored.dtype, stored.shape)
    if node.output.type != held:
        message = f"weight `{name}` is {held}, the node says {node.output.type}"
        yield Problem("V009", where, message)
