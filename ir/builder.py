"""The builder: creates nodes at an insertion point, types inferred at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import literal, weight
from regraft.ir.graph import Graph, Loc, Node, Value
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role, Weight

INLINE_BYTES = 1024
"""Constants of at most this size are inline literals, larger ones are named weights."""


class Builder:
    """Creates nodes before `before` (at the end of `graph` when None)."""

    __slots__ = ("before", "graph", "loc")

    def __init__(self, graph: Graph, before: Node | None = None, loc: Loc = ()) -> None:
        self.graph = graph
        self.before = before
        self.loc = loc

    def node(
        self,
        op: OpSpec,
        *inputs: Value | None,
        num_outputs: int | None = None,
        bodies: tuple[Graph, ...] = (),
        **attrs: Any,
    ) -> Node:
        """Creates a node; attributes are keyword arguments."""
        return self.graph.create(
            op, inputs, attrs, num_outputs=num_outputs, bodies=bodies, before=self.before,
            loc=self.loc,
        )  # fmt: skip

    def op(self, op: OpSpec, *inputs: Value | None, **attrs: Any) -> Value:
        """Creates a node and returns its first result."""
        return self.graph.create(op, inputs, attrs, before=self.before, loc=self.loc).outputs[0]

    def multi(
        self, op: OpSpec, *inputs: Value | None, num_outputs: int | None = None, **attrs: Any
    ) -> Sequence[Value]:
        """Creates a node and returns all its results."""
        return self.node(op, *inputs, num_outputs=num_outputs, **attrs).outputs

    def constant(self, array: Any, dtype: DType | None = None, *, name: str | None = None) -> Value:
        """Creates a constant: inline when small, else a weight of role `const`."""
        array = np.asarray(array)
        if dtype is not None and array.dtype != dtype.numpy:
            array = array.astype(dtype.numpy)
        if array.nbytes <= INLINE_BYTES:
            value = self.op(literal, value=array)
            value.name = name
            return value
        return self.weight(name or "const", ArrayWeight(array))

    def weight(self, name: str, tensor: Weight, role: Role = Role.CONST) -> Value:
        """Adds a tensor to the module's weights and creates the node that reads it."""
        name = self.graph.scope.weights.add(name, tensor, role)
        value = self.op(weight, name=name)
        value.name = name
        return value
