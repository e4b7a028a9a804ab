"""A module: one graph with its weights, symbols, states and assumptions."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.ir.collector import collector_paused
from regraft.ir.dims import Symbol
from regraft.ir.graph import Assumption, Graph, Key, Scope, Value
from regraft.ir.types import Type
from regraft.ir.weights import WeightStore


class StateKind(enum.Enum):
    """What a state is."""

    KV_CACHE = "kv_cache"
    RECURRENT = "recurrent"
    BUFFER = "buffer"


@dataclass(frozen=True, slots=True)
class State:
    """Links a graph input with the output that becomes it at the next call."""

    name: str
    input: str
    output: str
    kind: StateKind


@dataclass(slots=True)
class Module:
    """The unit that frontends produce, passes rewrite and backends consume.

    Attributes:
        graph: The main graph; its scope holds weights and symbols.
        name: Name of the model.
        states: KV caches, recurrent states and buffers.
        meta: Strings that survive conversion (`producer`, `onnx.opset`, `onnx.metadata.…`).
        level: `canonical` or the target that the module was legalized for.
        warnings: What the frontend had to repair or could not prove, one sentence each.
    """

    graph: Graph
    name: str = "model"
    states: tuple[State, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    level: str = "canonical"
    warnings: list[str] = field(default_factory=list)

    @property
    def weights(self) -> WeightStore:
        """The module's weights."""
        return self.graph.scope.weights

    @property
    def assumptions(self) -> Sequence[Assumption]:
        """Undecidable facts that were taken, in order of appearance."""
        return tuple(self.graph.scope.assumptions.values())

    @property
    def symbols(self) -> dict[str, Symbol]:
        """The module's symbols by name."""
        return self.graph.scope.symbols

    @property
    def input_types(self) -> dict[str, Type]:
        """Types of the graph inputs by name."""
        return {str(value.name): value.type for value in self.graph.inputs}

    def __str__(self) -> str:
        """Returns the text form, large tensors by name."""
        from regraft.ir.text import print_module  # the text form builds modules

        return print_module(self)

    def clone(self, values: dict[Value, Value] | None = None) -> Module:
        """Returns a copy that shares only the weights' tensors; cost O(nodes).

        Args:
            values: Filled with the map from values of the main graph to those of the copy.
        """
        scope = Scope()
        scope.weights = self.weights.copy()
        scope.symbols = dict(self.symbols)
        scope.assumptions = dict(self.graph.scope.assumptions)
        with collector_paused():
            graph = clone_graph(self.graph, scope, values)
        return Module(
            graph, self.name, self.states, dict(self.meta), self.level, list(self.warnings)
        )

    def restore(self, snapshot: Module) -> None:
        """Makes the module what an earlier clone of it is, which stays usable; cost O(nodes)."""
        copy = snapshot.clone()
        self.graph = copy.graph
        self.states = copy.states
        self.meta = copy.meta
        self.level = copy.level
        self.warnings = copy.warnings


def clone_graph(
    graph: Graph, scope: Scope | None = None, values: dict[Value, Value] | None = None
) -> Graph:
    """Copies a graph with its bodies.

    Args:
        graph: The graph to copy.
        scope: Scope of the copy; default: the same scope.
        values: Filled with the map from old to new values.
    """
    new = Graph(graph.scope if scope is None else scope)
    values = {} if values is None else values
    for value in graph.inputs:
        copy = new.add_input(value.name, value.type)
        copy.content = value.content
        values[value] = copy
    for node in graph:
        bodies = tuple(clone_graph(body, new.scope) for body in node.bodies)
        made = new.create(
            node.op, [None if v is None else values[v] for v in node.inputs], node.attrs,
            num_outputs=len(node.outputs), bodies=bodies, loc=node.loc, infer=False,
        )  # fmt: skip
        for key, entry in node.meta.items():
            if _copies(key):
                made.set_meta(key, entry)
        for old, fresh in zip(node.outputs, made.outputs, strict=True):
            fresh.name, fresh.type, fresh.content = old.name, old.type, old.content
            values[old] = fresh
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        new.add_output(name, values[value])
    return new


def _copies(key: Key[Any]) -> bool:
    return key.copies
