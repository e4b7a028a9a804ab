"""Common subexpressions: equal calls on equal operands become one, equal constants too.

Constants are compared by content, but parameters and buffers never: two of them that happen to be
equal stay apart, as training would move them apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from regraft.ir.constants import literal, weight
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.rewrite.retype import contradict, rename_symbols, symbol_renames
from regraft.ir.weights import ArrayWeight, Role, WeightStore

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
        self.digests: dict[str, bytes] = {}
        self.kept: list[Node] = []
        self.renamed: dict[str, DimLike] = {}
        self._commutes: dict[OpSpec, bool | None] = {}

    def merge(self, graph: Graph) -> None:
        seen: dict[Key, Node] = {}
        for node in graph:
            for body in node.bodies:
                self.merge(body)
            key = self._key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is node or len(first.outputs) != len(node.outputs):
                continue
            if any(
                contradict(old.type, new.type)
                for old, new in zip(node.outputs, first.outputs, strict=True)
            ):
                continue
            for old, new in zip(node.outputs, first.outputs, strict=True):
                if old.type != new.type:
                    self.renamed.update(symbol_renames(old.type, new.type))
            graph.replace(node, first.outputs)
            self.kept.append(first)

    def _key(self, node: Node) -> Key | None:
        op = node.op
        commutes = self._commutes.get(op, 0)
        if commutes == 0:
            commutes = self._commutes[op] = _commutes(op)
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
        if self.weights.role(name) is not Role.CONST:
            return "weight", self.weights.aliases.get(name, name)
        digest = self.digests.get(name)
        if digest is None:
            stored = self.weights[name]
            array = stored.numpy()
            digest = hashlib.blake2b(repr(array_key(array, digest=True)).encode()).digest()
            if isinstance(stored, ArrayWeight):
                self.digests[name] = digest
        return "content", digest


def _commutes(op: OpSpec) -> bool | None:
    """Returns whether operands may be exchanged, None where equal calls may differ."""
    if Trait.PURE not in op.traits:
        return None
    return Trait.COMMUTATIVE in op.traits and len(op.operands) >= 2


def array_key(array: np.ndarray[Any, Any], *, digest: bool = False) -> Key:
    """Returns a key that two arrays share when they hold the same bits."""
    if array.dtype == object:
        return "strings", array.shape, tuple(array.reshape(-1))
    content: Hashable = array.tobytes()
    if digest:
        content = hashlib.blake2b(array.tobytes()).hexdigest()
    return array.dtype.name, array.shape, content


def attr_key(value: Any) -> Key:
    """Returns a key of an attribute value: 0.0 and -0.0 differ, arrays go by content."""
    if isinstance(value, np.ndarray):
        return array_key(value)
    if isinstance(value, float):
        return ("nan",) if math.isnan(value) else (value, math.copysign(1.0, value))
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return tuple(attr_key(item) for item in value)
    return value  # type: ignore[no-any-return]  # ints, strings, dims, types and tuples of them
