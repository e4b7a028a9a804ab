"""Cones: what computes one value from one other, through element-wise operators and reductions.

A cone is delimited by structure alone: its nodes are element-wise or reductions, its leaves are one
varying value and constants, and nothing outside uses its interior (or the cone says what does).
What it computes is found by evaluating it (`regraft.passes.analysis.probing`), so that no spelling
needs a pattern. Cones of equal structure have equal keys and are identified once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import cast, logical, reduce, response_norm
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import DType, TensorType, static_shape
from regraft.ir.weights import Role
from regraft.passes.cleanup.facts import is_broadcasting

Array = np.ndarray[Any, Any]

MEAN_LIKE = frozenset({reduce.reduce_mean, reduce.reduce_max, reduce.reduce_min})
"""Reductions whose value does not depend on how many equal positions there are."""

REDUCTIONS = frozenset({*reduce.OPS, response_norm.lp_norm, response_norm.mean_variance_norm})

_COMPARISONS = frozenset(
    {logical.less, logical.less_or_equal, logical.greater, logical.greater_or_equal}
)

_MAX_NUMBER_BYTES = 1 << 16
_NO_ATTRS: tuple[()] = ()


@dataclass(frozen=True, slots=True)
class Constant:
    """A leaf that no input of the model changes.

    Args:
        number: What all its elements equal, None when they differ, are many parameters or unknown.
        shape: Its sizes, None where they are not known.
    """

    number: float | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class Cone:
    """What computes `y` from `x`.

    Args:
        x: The one varying value it starts from.
        y: What it computes.
        nodes: Its nodes, the last one first; the first one makes `y`.
        vectors: Constants that are no numbers, in order of first use.
        numbers: Constants that are numbers.
        escaping: Interior values that nodes outside use too.
        key: Equal for cones of equal structure.
    """

    x: Value
    y: Value
    nodes: tuple[Node, ...]
    vectors: tuple[Value, ...]
    numbers: Mapping[Value, float]
    escaping: tuple[Value, ...]
    key: int


class ConeFinder:
    """Finds cones and gives equal structures equal keys; one per analysis of a module.

    Args:
        reductions: Whether cones may hold reductions. Constants of several elements are then
            vectors, whatever they hold.
        max_nodes: Larger cones are not looked at.
    """

    __slots__ = ("_constants", "_joins", "_keys", "_reductions", "_wants", "max_nodes")

    def __init__(self, *, reductions: bool, max_nodes: int = 32) -> None:
        self._reductions = reductions
        self.max_nodes = max_nodes
        self._constants: dict[Value, Constant | None] = {}
        self._wants: dict[OpSpec, bool] = {}
        self._keys: dict[Any, int] = {}

    def joins(self, op: OpSpec) -> bool:
        """Returns whether nodes of the operator may be part of a cone."""
        found = self._wants.get(op)
        if found is None:
            found = is_pointwise(op) or (self._reductions and op in REDUCTIONS)
            self._wants[op] = found
        return found

    def scan(self, graph: Graph) -> None:
        """Notes what no input of the model changes in one graph; cost O(nodes)."""
        constants = self._constants
        for node in graph:
            if node.op.traits & Trait.CONSTANT:
                constants[node.outputs[0]] = None  # read when it is asked for
            elif node._inputs and not node.bodies and Trait.PURE in node.op.traits:
                for value in node._inputs:
                    if value is not None and value not in constants:
                        break
                else:
                    constants.update(dict.fromkeys(node.outputs))

    def constant(self, value: Value) -> Constant | None:
        """Returns what is known of a constant or of what follows from constants, else None."""
        if value not in self._constants:
            return None
        found = self._constants[value]
        if found is None:
            found = self._constants[value] = self._read(value)
        return found

    def is_constant(self, value: Value) -> bool:
        """Returns whether no input of the model changes a value of a scanned graph."""
        return value in self._constants

    def _read(self, value: Value) -> Constant:
        shape, dtype = static_shape(value.type), value.dtype
        if shape is None or dtype is None or not is_constant(value):
            return Constant(None, shape)
        if not (dtype.is_float or dtype.is_integer or dtype is DType.BOOL):
            return Constant(None, shape)
        if any(size != 1 for size in shape) and (self._reductions or _is_parameter(value)):
            return Constant(None, shape)
        array = constant_of(value, _MAX_NUMBER_BYTES)
        if array is None or array.size == 0:
            return Constant(None, shape)
        first = array.flat[0]
        equal = array.size == 1 or bool((array == first).all())
        return Constant(float(first) if equal else None, shape)

    def cones(self, y: Value) -> Iterator[Cone]:
        """Yields the cones that compute `y`, each within the next; cost O(nodes of the largest).

        Args:
            y: A result of a node that joins.
        """
        node = y.producer
        if node is None or y in self._constants or not self.joins(node.op):
            return
        walk = _Walk(self, y)
        while len(walk.nodes) < self.max_nodes:
            if not walk.expand():
                return
            cone = walk.cone()
            if cone is not None:
                yield cone

    def intern(self, part: Any) -> int:
        """Returns a number that equal parts share."""
        return self._keys.setdefault(part, len(self._keys))


def is_pointwise(op: OpSpec) -> bool:
    """Returns whether each result element depends on the elements at its position alone.

    Of the operators that jump, only comparisons: they choose between branches of a function.
    """
    if op in _COMPARISONS:
        return True
    return is_broadcasting(op) and Trait.DISCRETE not in op.traits and op is not cast.bitcast


def _is_parameter(value: Value) -> bool:
    producer = value.producer
    if producer is None or producer.op is not weight or producer.graph is None:
        return False
    return producer.graph.scope.weights.role(producer.attrs["name"]) is Role.PARAM


class _Walk:
    """Expands the latest varying value again and again: all its uses in the cone are then known."""

    __slots__ = ("escaping", "finder", "frontier", "ids", "key", "nodes", "numbers", "uses",
                 "vectors", "y")  # fmt: skip

    def __init__(self, finder: ConeFinder, y: Value) -> None:
        self.finder = finder
        self.y = y
        self.nodes: list[Node] = []
        self.frontier: list[Value] = [y]
        self.uses: dict[Value, int] = {}
        self.ids: dict[Value, int] = {y: 0}
        self.numbers: dict[Value, float] = {}
        self.vectors: list[Value] = []
        self.escaping: list[Value] = []
        self.key = 0

    def expand(self) -> bool:
        """Adds the node that makes the latest value of the frontier; False where it cannot."""
        frontier = self.frontier
        value = frontier[0] if len(frontier) == 1 else max(frontier, key=_order)
        node = value.producer
        if node is None or not self.finder.joins(node.op) or len(node.outputs) != 1:
            return False
        if value is not self.y and len(value._uses) != self.uses[value]:
            self.escaping.append(value)
        frontier.remove(value)
        self.nodes.append(node)
        refs: list[Any] = [self.ids[value]]
        for operand in node._inputs:
            if operand is None:
                refs.append(None)
                continue
            constant = self.finder.constant(operand)
            refs.append(
                self._varying(operand) if constant is None else self._leaf(operand, constant)
            )
        attrs = tuple(node.attrs.items()) if node.attrs else _NO_ATTRS
        if node.op in REDUCTIONS:
            attrs = _relative(node)
        self.key = self.finder.intern((self.key, node.op, attrs, *refs))
        return True

    def _varying(self, operand: Value) -> int:
        known = self.ids.get(operand)
        if known is None:
            known = self.ids[operand] = len(self.ids)
            self.frontier.append(operand)
            self.uses[operand] = 0
        self.uses[operand] += 1
        return known

    def _leaf(self, operand: Value, constant: Constant) -> Any:
        dtype = operand.dtype
        if constant.number is not None:
            self.numbers[operand] = constant.number
            return ("number", constant.number, dtype)
        if operand not in self.ids:
            self.ids[operand] = len(self.ids)
            self.vectors.append(operand)
        # sizes are left out: what varies along which axis is all that matters
        varies = None if constant.shape is None else tuple(size != 1 for size in constant.shape)
        return ("vector", self.ids[operand], varies, dtype)

    def cone(self) -> Cone | None:
        """Returns the cone whose varying leaf is the whole frontier, or None."""
        if len(self.frontier) != 1:
            return None
        x = self.frontier[0]
        key = self.finder.intern(("x", self.key, self.ids[x], x.rank, x.dtype, self.y.dtype))
        return Cone(
            x, self.y, tuple(self.nodes), tuple(self.vectors), dict(self.numbers),
            tuple(self.escaping), key,
        )  # fmt: skip


def _order(value: Value) -> int:
    return -1 << 62 if value.producer is None else value.producer.order


def _relative(node: Node) -> tuple[Any, ...]:
    """Returns what a reduction does, axes counted from the end, sizes where they matter."""
    x = node.inputs[0]
    axes = normalized_axes(node)
    sizes: tuple[Any, ...] = ()
    if axes is not None and x is not None and x.shape is not None and node.op not in MEAN_LIKE:
        sizes = tuple(x.shape[axis] for axis in axes)
    rest = tuple((k, v) for k, v in node.attrs.items() if k not in ("axes", "axis"))
    return (axes, sizes, *rest)


def normalized_axes(node: Node) -> tuple[int, ...] | None:
    """Returns the axes that a reduction or statistics operator works over, counted from the end."""
    x = node.inputs[0]
    if x is None or x.rank is None:
        return None
    axes: tuple[int, ...] | None
    if node.op is response_norm.lp_norm:
        axes = (node.attrs["axis"],)
    elif node.op is response_norm.mean_variance_norm:
        axes = node.attrs["axes"]
    else:
        axes = reduce.reduced_axes(node)
    rank = x.rank
    return None if axes is None else tuple(sorted(axis % rank - rank for axis in axes))


def same_sizes(a: Value, b: Value) -> bool:
    """Returns whether two tensors surely have the same known shape."""
    x, y = a.type, b.type
    return (
        isinstance(x, TensorType)
        and isinstance(y, TensorType)
        and x.shape is not None
        and x.shape == y.shape
    )


def loses_nothing(cone: Cone) -> bool:
    """Returns whether interior values are at least as precise as the floats at the cone's ends.

    Of two 16-bit floats, neither holds the other's values.
    """
    x = cone.x.dtype
    for node in cone.nodes:
        dtype = node.outputs[0].dtype
        if dtype is None or x is None:
            return False
        if dtype.is_float and dtype is not x and dtype.bits <= x.bits:
            return False
    return True
