"""Reduces a failing module to the few nodes around one of them that still fail.

A part of a graph becomes a module of its own: values from outside are its inputs, with the arrays
that a real run gave them, and results that the outside uses are its outputs. The part grows around
a seed until the pass fails on it, then loses what the failure does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import weight
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Node, Scope, Value
from regraft.ir.module import Module, clone_graph
from regraft.ir.opspec import Trait
from regraft.ir.types import TensorType, Type, bind_type
from regraft.passes.check.samples import Sample

MAX_PART = 256
"""Nodes of the largest part that is tried; a failure that needs more is not reduced."""

_MAX_RADIUS = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a graph as a module, with inputs that make it fail.

    Attributes:
        module: The part.
        samples: Inputs of the part.
        num_nodes: Its compute nodes.
    """

    module: Module
    samples: tuple[Sample, ...]
    num_nodes: int


Fails = Callable[[Module, Sequence[Sample]], bool]


def reduce_failure(
    module: Module, seeds: Iterable[Node], sample: Mapping[str, Any], fails: Fails
) -> Part | None:
    """Returns the smallest failing part that was found around the seeds, None when none fails.

    Args:
        module: The module on which the pass fails; it is not changed.
        seeds: Nodes of its main graph near the failure.
        sample: Inputs of the module; what they make of the part's inputs is used.
        fails: Whether the pass still fails on a part and its samples; may change the part.
    """
    graph = module.graph
    part = {node for node in seeds if node.graph is graph and not _is_constant(node)}
    for _ in range(_MAX_RADIUS):
        if not part:
            return None
        found = _try(module, part, sample, fails)
        if found is not None:
            return _shrink(module, part, sample, fails, found)
        grown = part | _neighbours(part, graph)
        if len(grown) == len(part) or len(grown) > MAX_PART:
            break
        part = grown
    return None


def _neighbours(part: set[Node], graph: Graph) -> set[Node]:
    found: set[Node] = set()
    for node in part:
        found.update(v.producer for v in node.inputs if v is not None and v.producer is not None)
        for value in node.outputs:
            found.update(value.users)
    return {node for node in found if node.graph is graph and not _is_constant(node)}


def _shrink(
    module: Module, part: set[Node], sample: Mapping[str, Any], fails: Fails, best: Part
) -> Part:
    """Drops runs of nodes as long as the rest fails, halving their length (delta debugging)."""
    nodes = sorted(part, key=lambda node: node.order)
    length = max(len(nodes) // 2, 1)
    while True:
        dropped = False
        start = 0
        while start < len(nodes) and len(nodes) > 1:
            rest = nodes[:start] + nodes[start + length :]
            found = _try(module, set(rest), sample, fails) if rest else None
            if found is None:
                start += length
            else:
                nodes, best, dropped = rest, found, True
        if length == 1 and not dropped:
            return best
        length = max(length // 2, 1)


def _try(module: Module, part: set[Node], sample: Mapping[str, Any], fails: Fails) -> Part | None:
    cut = extract(module, part, sample)
    if cut is None:
        return None
    kept = cut.module.clone()
    return Part(kept, cut.samples, cut.num_nodes) if fails(cut.module, cut.samples) else None


def extract(module: Module, part: set[Node], sample: Mapping[str, Any]) -> Part | None:
    """Returns a part as a module, None when a value on its border cannot be an input.

    Sizes that only run time knows are fixed to what the sample makes of them.
    """
    border = _border(part)
    content = _content(module, border, sample)
    if content is None:
        return None
    arrays, env = content
    scope = Scope()
    scope.weights = module.weights.copy()
    scope.symbols = dict(module.symbols)
    scope.assumptions = dict(module.graph.scope.assumptions)
    graph = Graph(scope)
    values: dict[Value, Value] = {}
    taken: set[str] = set()
    inputs: dict[str, Any] = {}
    for value in border:
        name = _unique(value.name or "x", taken)
        made = graph.add_input(name, _fixed(value.type, env))
        made.content = value.content if not _speaks_of_runtime(value.content) else None
        values[value] = made
        inputs[name] = arrays[value]
    for node in _with_constants(part):
        made_node = graph.create(
            node.op,
            [None if v is None else values[v] for v in node.inputs],
            {name: _fixed_attr(item, env) for name, item in node.attrs.items()},
            num_outputs=len(node.outputs),
            bodies=tuple(clone_graph(body, scope) for body in node.bodies),
            loc=node.loc,
            infer=False,
        )
        for old, new in zip(node.outputs, made_node.outputs, strict=True):
            new.name, new.type, new.content = old.name, _fixed(old.type, env), old.content
            if _speaks_of_runtime(old.content):
                new.content = None
            values[old] = new
    for value in _results(part):
        graph.add_output(_unique(f"{value.name or 'y'}.out", taken), values[value])
    _drop_unread(scope, graph)
    made_module = Module(graph, f"{module.name} (part)", meta=dict(module.meta))
    made_module.level = module.level
    binding = {name: size for name, size in env.items() if name in scope.symbols}
    return Part(made_module, (Sample(inputs, binding, "observed"),), len(part))


def _border(part: set[Node]) -> list[Value]:
    found: dict[Value, None] = {}
    for node in sorted(part, key=lambda node: node.order):
        for value in node.inputs:
            producer = None if value is None else value.producer
            if value is None or producer in part:
                continue
            if producer is None or not _is_constant(producer):
                found[value] = None
    return list(found)


def _results(part: set[Node]) -> list[Value]:
    """Returns what the outside uses; of a part that nothing outside uses, its unused results."""
    ordered = sorted(part, key=lambda node: node.order)
    every = [value for node in ordered for value in node.outputs]
    used = [v for v in every if any(user not in part for user, _ in v.uses)]
    return used or [v for v in every if not v.num_uses]


def _with_constants(part: set[Node]) -> list[Node]:
    constants: dict[Node, None] = {}
    for node in part:
        for value in node.inputs:
            if value is not None and value.producer is not None and _is_constant(value.producer):
                constants[value.producer] = None
    ordered = sorted(part, key=lambda node: node.order)
    return [*sorted(constants, key=lambda node: node.order), *ordered]


def _content(
    module: Module, border: Sequence[Value], sample: Mapping[str, Any]
) -> tuple[dict[Value, Any], dict[str, int]] | None:
    """Runs the module and returns the arrays of the border and the size of every symbol."""
    arrays: dict[Value, Any] = {}
    env: dict[str, int] = {}
    wanted = set(border)

    def note(value: Value, array: Any) -> None:
        if value in wanted:
            arrays[value] = array
        for dim, size in zip(value.shape or (), np.shape(array), strict=False):
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None:
                env.setdefault(symbol.name, size)

    evaluate(module, sample, observe=note)
    if len(arrays) < len(wanted) or not all(
        isinstance(value.type, TensorType) and value.dtype is not None and value.shape is not None
        for value in border
    ):
        return None
    return arrays, env


def _runtime_only(dim: Any) -> bool:
    return isinstance(dim, Dim) and any(symbol.defined for symbol in dim.symbols())


def _speaks_of_runtime(content: Any) -> bool:
    items = content if isinstance(content, tuple) else (content,)
    return any(map(_runtime_only, items))


def _fixed(type_: Type, env: Mapping[str, int]) -> Type:
    if not isinstance(type_, TensorType) or not any(map(_runtime_only, type_.shape or ())):
        return type_
    return bind_type(type_, _runtime_sizes(type_.shape or (), env))


def _fixed_attr(item: Any, env: Mapping[str, int]) -> Any:
    if isinstance(item, tuple) and any(map(_runtime_only, item)):
        return tuple(_fixed_attr(each, env) for each in item)
    return item.bind(_runtime_sizes((item,), env)) if _runtime_only(item) else item


def _runtime_sizes(dims: Iterable[Any], env: Mapping[str, int]) -> dict[str, int]:
    symbols = {s for dim in dims if _runtime_only(dim) for s in dim.symbols()}
    return {s.name: env[s.name] for s in symbols if s.name in env}


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 1
    while unique in taken:
        unique, number = f"{name}.{number}", number + 1
    taken.add(unique)
    return unique


def _drop_unread(scope: Scope, graph: Graph) -> None:
    read = {node.attrs["name"] for node in graph.walk() if node.op is weight}
    aliases = scope.weights.aliases
    read |= {aliases[name] for name in read if name in aliases}
    for name in list(scope.weights):
        if name not in read:
            scope.weights.remove(name)


def _is_constant(node: Node) -> bool:
    return Trait.CONSTANT in node.op.traits
