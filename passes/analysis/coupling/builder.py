"""Builds the spaces of a graph's axes: one walk, each node tying the axes of its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.axes import Axis, Role
from regraft.ir.axis_binding import BoundRule, bind_node, rule_of
from regraft.ir.constants import is_constant, weight
from regraft.ir.derive import derive
from regraft.ir.dims import DimLike, exactdiv, product
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.selecting import selected_first
from regraft.ir.steps import Transpose, Tree
from regraft.passes.analysis.coupling.counted import may_drop
from regraft.passes.analysis.coupling.movement import MOVES
from regraft.passes.analysis.coupling.spaces import (
    Pin,
    Space,
    pin,
    product_of,
    unify,
)

Array = np.ndarray[Any, Any]


class Builder:
    """The spaces of all axes of a module, bodies included.

    Attributes:
        axes: One space per axis of every value of known shape.
        weights: The same for every weight by name; tied names share one entry, and the transpose of
            a weight has its spaces.
        stated: Per node, for every attribute that states sizes of its own: their spaces.
        picks: Per node that gathers by constant indices: the source axis, the indices, and the axes
            that they make (none for a single position).
        parts: Per node that takes parts of an axis (slice): what lies before, within, and the axis.
        sums: Per node that sums over a label: (operand, axis, the label's space) of every place.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.axes: dict[Value, tuple[Space, ...]] = {}
        self.weights: dict[str, tuple[Space, ...]] = {}
        self._sources: dict[Tree, tuple[Space, ...]] = {}
        self.stated: dict[Node, dict[str, tuple[Space, ...]]] = {}
        self.picks: dict[Node, tuple[Space, Array, tuple[Space, ...]]] = {}
        self.parts: dict[Node, list[tuple[int, Space, Space]]] = {}
        self.sums: dict[Node, list[tuple[int, int, Space]]] = {}

    def build(self) -> None:
        """Walks the graph and all bodies; cost O(nodes)."""
        graph = self.module.graph
        self._graph(graph, "graph", self._states())

    def _graph(self, graph: Graph, what: str, held: set[str]) -> None:
        """Ties the axes of one graph; what crosses its border keeps its shape."""
        for value in graph.inputs:
            if value.name not in held:
                self.pin_value(
                    value, Pin(what, value.name or "", "input", f"it is an input of the {what}")
                )
        for node in graph:
            self.node(node)
            for body in node.bodies:
                self._graph(body, "body", set())
        for name, value in zip(graph.output_names, graph.outputs, strict=True):
            if name not in held:
                self.pin_value(value, Pin(what, name, "output", f"it is an output of the {what}"))

    def _states(self) -> set[str]:
        """Ties both ends of every state and returns their names."""
        graph = self.module.graph
        inputs = {value.name: value for value in graph.inputs}
        outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
        held: set[str] = set()
        for state in self.module.states:
            source, result = inputs[state.input], outputs[state.output]
            why = Pin("graph", state.name, "state", "both ends of a state must agree")
            self.tie_values(source, result, why)
            if state.input in self.module.weights:  # what a buffer holds at first
                shape = self.module.weights[state.input].shape
                first = self._weight_spaces(state.input, shape)
                for a, b in zip(first, self.spaces_of(source), strict=True):
                    unify(a, b, why)
            held |= {state.input, state.output}
        return held

    # -- axes -------------------------------------------------------------------------------

    def spaces_of(self, value: Value) -> tuple[Space, ...]:
        """Returns one space per axis, () for an unknown shape; weights of one name share them."""
        found = self.axes.get(value)
        if found is not None:
            return found
        shape = value.shape or ()
        producer = value.producer
        if producer is not None and producer.op is weight:
            spaces = self._weight_spaces(producer.attrs["name"], shape)
        else:
            spaces = tuple(Space(size) for size in shape)
        self.axes[value] = spaces
        if value.content is not None and not is_constant(value):
            self.pin_value(value, Pin("content", value.name or "", "axis 0", "it holds sizes"))
        return spaces

    def _weight_spaces(self, name: str, shape: Sequence[DimLike]) -> tuple[Space, ...]:
        name = self.module.weights.aliases.get(name, name)
        spaces = self.weights.get(name)
        if spaces is None:
            spaces = self.weights[name] = self._source_spaces(name, shape)
        return spaces

    def _source_spaces(self, name: str, shape: Sequence[DimLike]) -> tuple[Space, ...]:
        """Returns new spaces, or those of a weight that this one is the transpose of."""
        store = self.module.weights
        tree = selected_first(derive(name, store[name]))
        source = tree.x if isinstance(tree, Transpose) else tree
        perm = tree.perm if isinstance(tree, Transpose) else tuple(range(len(shape)))
        spaces = self._sources.get(source)
        if spaces is None:
            own = {axis: Space(size) for axis, size in zip(perm, shape, strict=True)}
            spaces = self._sources[source] = tuple(own[axis] for axis in range(len(shape)))
        return tuple(spaces[axis] for axis in perm)

    def pin_value(self, value: Value, why: Pin) -> None:
        """Pins every axis of a value."""
        for space in self.spaces_of(value):
            pin(space, why)

    def tie_values(self, a: Value, b: Value, why: Pin) -> None:
        """Ties all axes of two values of one shape."""
        left, right = self.spaces_of(a), self.spaces_of(b)
        if len(left) != len(right):
            self.pin_value(a, why)
            self.pin_value(b, why)
            return
        for x, y in zip(left, right, strict=True):
            unify(x, y, why)

    # -- nodes ------------------------------------------------------------------------------

    def node(self, node: Node) -> None:
        """Ties the axes of a node's operands and results."""
        move = MOVES.get(node.op)
        if move is not None and move(self, node):
            return
        rule = rule_of(node)
        if rule is None:
            self.freeze(node, "the operator states no axis rule for these operands")
            return
        try:
            bound = bind_node(node, rule, with_results=True)
        except ValueError as error:
            self.freeze(node, f"its axis rule does not fit: {error}")
            return
        _Binding(self, node, bound).run()

    def freeze(self, node: Node, reason: str) -> None:
        """Pins every axis of every operand and result."""
        if not node.inputs and is_constant(node.outputs[0]):
            return
        why = Pin(node.op.name, name_of(node), "all axes", reason)
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                self.pin_value(value, why)


class _Binding:
    """Ties one node's axes by its bound rule."""

    def __init__(self, builder: Builder, node: Node, bound: BoundRule) -> None:
        self.builder = builder
        self.node = node
        self.bound = bound
        self.labels: dict[str, Space] = {}
        self.outers: dict[str, tuple[str, ...]] = {}

    def run(self) -> None:
        node, bound = self.node, self.bound
        if any(
            value is not None and value.shape is None for value in (*node.inputs, *node.outputs)
        ):
            # what cannot be seen cannot be tied
            self.builder.freeze(node, "the shape of an operand or result is not known")
            return
        operands = [*bound.operands, *[None] * (len(node.inputs) - len(bound.operands))]
        for idx, (value, axes) in enumerate(zip(node.inputs, operands, strict=False)):
            if value is not None:
                self._value(value, axes, _slot(node, idx))
        results = [*bound.results, *[None] * (len(node.outputs) - len(bound.results))]
        for value, axes in zip(node.outputs, results, strict=False):
            self._value(value, axes, "result")
        if node.op.counts:
            self.builder.stated[node] = self._stated()
        sums = [
            (idx, place, self.labels[factor.name])
            for idx, axes in enumerate(operands)
            for place, axis in enumerate(axes or ())
            for factor in axis
            if factor.role is Role.SUM and factor.name in self.labels
        ]
        if sums:
            self.builder.sums[node] = sums

    def _stated(self) -> dict[str, tuple[Space, ...]]:
        return {
            name: tuple(product_of([self.labels[f.name] for f in axis]) for axis in axes)
            for name, axes in self.bound.counts.items()
            if self.node.op.counts[name] != "->"
            and all(f.name in self.labels for axis in axes for f in axis)
        }

    def _value(self, value: Value, axes: Sequence[Axis] | None, slot: str) -> None:
        spaces = self.builder.spaces_of(value)
        if axes is None or len(axes) != len(spaces):
            self.builder.pin_value(value, self._why(slot, "its axes have no labels"))
            return
        for idx, (axis, space) in enumerate(zip(axes, spaces, strict=True)):
            if not axis:
                if space.size != 1:
                    pin(space, self._why(f"{slot} axis {idx}", "it is read as one position"))
                continue
            self._axis(axis, space, f"{slot} axis {idx}")

    def _axis(self, axis: Axis, space: Space, where: str) -> None:
        if len(axis) == 1 and axis[0].name not in self.labels and not axis[0].free:
            self.labels[axis[0].name] = space
        else:
            factors: list[Space] = []
            for position, factor in enumerate(axis):
                label = self.labels.get(factor.name)
                if label is None:
                    size = self._size(axis, position, space.size)
                    outer = product_of(factors) if factor.free and factors else None
                    label = self.labels[factor.name] = Space(size, outer=outer)
                elif label.outer is not None and not factor.free:
                    label.outer = None
                factors.append(label)
            reason = "its blocks do not nest with those of other operators"
            unify(space, product_of(factors), self._why(where, reason))
        for factor in axis:
            if factor.role is Role.FIXED and not may_drop(self.node.op, factor.name):
                why = self._why(where, f"`{factor.name}`: every position depends on the others")
                pin(self.labels[factor.name], why)

    def _size(self, axis: Axis, position: int, total: DimLike) -> DimLike:
        """Returns the size of a label; where nothing states it, what the others leave."""
        name = axis[position].name
        known = self.bound.sizes.get(name)
        if known is not None:
            return known
        others = [self.bound.sizes.get(f.name) for i, f in enumerate(axis) if i != position]
        sizes = [size for size in others if size is not None]
        if len(sizes) < len(others):
            return 1 if position else total
        return exactdiv(total, product(sizes))

    def _why(self, where: str, reason: str) -> Pin:
        return Pin(self.node.op.name, name_of(self.node), where, reason)


def name_of(node: Node) -> str:
    """Returns what a node is called in messages: its first named result, else its origin."""
    for value in node.outputs:
        if value.name:
            return value.name
    return node.loc[0] if node.loc else ""


def _slot(node: Node, idx: int) -> str:
    slots = node.op.operands
    if not slots:
        return f"operand {idx}"
    return slots[min(idx, len(slots) - 1)].name
