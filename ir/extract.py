"""Modules made from the values of another: a part of it, or all of it with other outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regraft.ir.dims import Dim, Symbol, symbols_of
from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph, Node, Scope, Value
from regraft.ir.module import Module, clone_graph
from regraft.ir.opspec import AttrKind


def extract(module: Module, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> Module:
    """Returns what computes `outputs` from `inputs`, and from graph inputs where it reads more.

    A graph input is read as well where it alone tells a size that an attribute speaks of.

    Weights keep their names, and their content is shared. Cost: O(nodes of the part).

    Args:
        module: The module; it is not changed.
        inputs: Values of the main graph that become inputs, by the name that they get.
        outputs: Values of the main graph that become outputs.

    Raises:
        UsageError: For values that are not in the main graph.
    """
    _check_main(module, {**inputs, **outputs})
    scope = Scope()
    scope.weights = module.weights.copy()
    scope.symbols = dict(module.symbols)
    scope.assumptions = dict(module.graph.scope.assumptions)
    graph = Graph(scope)
    values: dict[Value, Value] = {}
    for name, value in inputs.items():
        _add_input(graph, name, value, values)
    nodes, read = nodes_between(frozenset(inputs.values()), outputs.values())
    unread = _unread_sizes(nodes, inputs.values())
    for value in module.graph.inputs:
        own = _single_symbols(value)
        if value in read or (value not in values and own & unread):
            _add_input(graph, str(value.name), value, values)
            unread -= own
    for node in nodes:
        bodies = tuple(clone_graph(body, scope) for body in node.bodies)
        made = graph.create(
            node.op, [None if v is None else values[v] for v in node.inputs], node.attrs,
            num_outputs=len(node.outputs), bodies=bodies, loc=node.loc, infer=False,
        )  # fmt: skip
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type, new.content = old.name, old.type, old.content
            values.setdefault(old, new)  # an input of the part that a node of it makes as well
    graph.set_outputs((name, values[value]) for name, value in outputs.items())
    return Module(graph, module.name, level=module.level)


def with_outputs(module: Module, outputs: Mapping[str, Value]) -> Module:
    """Returns the module with other outputs, and without its states, which say what outputs mean.

    Weights are shared. Cost: O(nodes).

    Args:
        module: The module; it is not changed.
        outputs: Values of the main graph by the name that they get.

    Raises:
        UsageError: For values that are not in the main graph.
    """
    _check_main(module, outputs)
    copies: dict[Value, Value] = {}
    made = module.clone()
    made.graph = clone_graph(module.graph, made.graph.scope, copies)
    made.graph.set_outputs((name, copies[value]) for name, value in outputs.items())
    made.states = ()
    return made


def _check_main(module: Module, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
        if value.owner is not module.graph:
            raise UsageError(
                f"`{value.name or name}` is no value of the main graph",
                hint="values in bodies are not",
            )


def _unread_sizes(nodes: Sequence[Node], inputs: Iterable[Value]) -> set[Symbol]:
    """Returns symbols in attributes that are no axis of a value before, where they are read."""
    told = {symbol for value in inputs for symbol in _single_symbols(value)}
    unread: set[Symbol] = set()
    for node in nodes:
        unread |= _symbols_in_attributes(node) - told
        told |= {symbol for value in node.outputs for symbol in _single_symbols(value)}
    return unread


def _symbols_in_attributes(node: Node) -> set[Symbol]:
    found: set[Symbol] = set()
    for each in (node, *(inner for body in node.bodies for inner in body.walk())):
        for attr in each.op.all_attrs.values():
            held = each.attrs[attr.name]
            if attr.kind in (AttrKind.DIM, AttrKind.DIMS) and held is not None:
                found |= symbols_of(held if isinstance(held, tuple) else (held,))
    return found


def _single_symbols(value: Value) -> set[Symbol]:
    """Returns the symbols that are the size of an axis by themselves."""
    found = (dim.as_symbol() for dim in value.shape or () if isinstance(dim, Dim))
    return {symbol for symbol in found if symbol is not None}


def _add_input(graph: Graph, name: str, value: Value, values: dict[Value, Value]) -> None:
    copy = graph.add_input(name, value.type)
    copy.content = value.content
    values[value] = copy


def nodes_between(
    frontier: frozenset[Value], outputs: Iterable[Value]
) -> tuple[list[Node], set[Value]]:
    """Returns the nodes from `frontier` to `outputs`, in order, and every value that was met."""
    found: set[Node] = set()
    met: set[Value] = set()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in met:
            continue
        met.add(value)
        node = value.producer
        if value in frontier or node is None or node in found:
            continue
        found.add(node)
        pending += [v for v in node.inputs if v is not None]
    return sorted(found, key=lambda node: node.order), met
