"""Common subexpressions: equal calls on equal operands become one, equal constants too.

Constants are compared by content, but parameters and buffers never: two of them that happen to be
equal stay apart, as training would move them apart. What follows by the same steps from the same
ones is one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from regraft.ir.constants import literal, weight
from regraft.ir.derive import DerivedWeight
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.packed_parts import digest_of, sample_of
from regraft.ir.rewrite.retype import contradict, rename_symbols, symbol_renames
from regraft.ir.types import DType
from regraft.ir.weights import Role, WeightStore

Key = Hashable


def merge_subexpressions(graph: Graph) -> list[Node]:
    """Merges equal nodes of a graph and, apart, of each body; returns the nodes that stayed.

    Nodes with bodies are never merged.

    Cost: O(nodes); constants of role `const` are hashed.
    """
    merger = _Merger(graph.scope.weights)
    while True:
        before = len(merger.kept)
        merger.merge(graph)
        if not merger.renamed:
            return merger.kept
        # the symbols of merged results are one now: more may be equal
        rename_symbols(graph, merger.renamed)
        merger.renamed = {}
        if len(merger.kept) == before:
            return merger.kept


class _Merger:
    def __init__(self, weights: WeightStore) -> None:
        self.weights = weights
        self.kept: list[Node] = []
        self.renamed: dict[str, DimLike] = {}
        self._commutes: dict[OpSpec, bool | None] = {}
        self._digests: dict[str, bytes] = {}

    def merge(self, graph: Graph) -> None:
        seen: dict[Key, Node] = {}
        for node in graph:
            for body in node.bodies:
                self.merge(body)
            key = self._key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is not node and node.op is weight and not self._same_weight(first, node):
                # alike in the sample only: the whole content decides
                first = seen.setdefault((key, self._digest(node)), node)
            if first is not node and len(first.outputs) == len(node.outputs):
                self._replace(graph, node, first)

    def _replace(self, graph: Graph, node: Node, first: Node) -> None:
        pairs = list(zip(node.outputs, first.outputs, strict=True))
        if any(contradict(old.type, new.type) for old, new in pairs):
            return
        for old, new in pairs:
            if old.type != new.type:
                self.renamed.update(symbol_renames(old.type, new.type))
        graph.replace(node, first.outputs)
        self.kept.append(first)

    def _key(self, node: Node) -> Key | None:
        op = node.op
        if op not in self._commutes:
            self._commutes[op] = _commutes(op)
        commutes = self._commutes[op]
        if commutes is None or node.bodies:
            return None
        if op is weight:
            return self._weight_key(node.attrs["name"])
        if op is literal:
            return array_key(node.attrs["value"])
        inputs = [id(value) for value in node._inputs]
        if commutes and inputs[0] > inputs[1]:
            inputs[0], inputs[1] = inputs[1], inputs[0]
        if not node.attrs:
            return op, *inputs
        attrs = node.attrs  # in the order in which they were given: go by the operator's order
        return op, *inputs, *[attr_key(attrs[name]) for name in op.all_attrs]

    def _weight_key(self, name: str) -> Key:
        """Returns a key that equal constants share, made from a sample: little is read."""
        if self.weights.role(name) is not Role.CONST:
            held = self.weights[name]
            if isinstance(held, DerivedWeight):  # the same of the same tensors, also when trained
                return "derived", held.tree
            return "weight", self.weights.aliases.get(name, name)
        held = self.weights[name]
        if held.dtype is DType.STRING:
            return held.shape, array_key(held.numpy())
        return held.dtype, held.shape, sample_of(held)

    def _same_weight(self, first: Node, node: Node) -> bool:
        a, b = first.attrs["name"], node.attrs["name"]
        if a == b or self.weights.role(b) is not Role.CONST:
            return True  # the key of another role says all
        if self.weights[a] is self.weights[b] or self.weights[a].dtype is DType.STRING:
            return True
        return self._digest(first) == self._digest(node)

    def _digest(self, node: Node) -> bytes:
        name = node.attrs["name"]
        if name not in self._digests:
            self._digests[name] = digest_of(self.weights[name])
        return self._digests[name]


def _commutes(op: OpSpec) -> bool | None:
    """Returns whether operands may be exchanged, None where equal calls may differ."""
    if Trait.PURE not in op.traits:
        return None
    return Trait.COMMUTATIVE in op.traits and len(op.operands) >= 2


def array_key(array: np.ndarray[Any, Any]) -> Key:
    """Returns a key that two arrays share when they hold the same bits."""
    if array.dtype == object:
        return "strings", array.shape, tuple(array.reshape(-1))
    return array.dtype.name, array.shape, array.tobytes()


def attr_key(value: Any) -> Key:
    """Returns a key of an attribute value: 0.0 and -0.0 differ, arrays go by content."""
    if isinstance(value, np.ndarray):
        return array_key(value)
    if isinstance(value, float):
        return ("nan",) if math.isnan(value) else (value, math.copysign(1.0, value))
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return tuple(attr_key(item) for item in value)
    return value  # type: ignore[no-any-return]  # ints, strings, dims, types and tuples of them
