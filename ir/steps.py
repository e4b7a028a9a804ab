"""The closed set of steps from which derived weights are built: pure data that compares and hashes.

A tree of steps says how a tensor follows from others. Its leaves are `Source` (a weight as it was
loaded) and `Literal` (a small tensor held in the tree). `describe` gives element type and shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from regraft.ir.types import DType, dtype_of
from regraft.ir.weights import Weight, pack, unpack

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A weight as it was loaded.

    Args:
        name: Its name in the checkpoint that it came from.
        weight: The tensor; sources are equal when it is the same object.
    """

    name: str
    weight: Weight


@dataclass(frozen=True, slots=True)
class Literal:
    """A small tensor held in the tree, as packed bytes."""

    dtype: DType
    shape: Shape
    data: bytes

    @staticmethod
    def of(array: Array) -> Literal:
        """Returns the literal that holds a copy of `array`."""
        dtype = dtype_of(array)
        return Literal(dtype, array.shape, pack(array, dtype))

    def numpy(self) -> Array:
        """Returns the tensor."""
        return unpack(np.frombuffer(self.data, np.uint8), self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Slice:
    """`x[start:stop:step]` along one axis; `step` is positive."""

    x: Tree
    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Gather:
    """The positions `indices` of one axis, in that order."""

    x: Tree
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Permute:
    """All positions of one axis in another order."""

    x: Tree
    axis: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transpose:
    """The axes in another order."""

    x: Tree
    perm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in row-major order under another shape."""

    x: Tree
    shape: Shape


@dataclass(frozen=True, slots=True)
class Concat:
    """Tensors one after another along an axis."""

    xs: tuple[Tree, ...]
    axis: int


@dataclass(frozen=True, slots=True)
class Cast:
    """The elements rounded to another type; out of range as numpy does it."""

    x: Tree
    dtype: DType


@dataclass(frozen=True, slots=True)
class Mul:
    """Elementwise product with broadcasting, in f32 or f64, rounded to the type of `a`."""

    a: Tree
    b: Tree


@dataclass(frozen=True, slots=True)
class Add:
    """Elementwise sum with broadcasting, in f32 or f64, rounded to the type of `a`."""

    a: Tree
    b: Tree


@dataclass(frozen=True, slots=True)
class Div:
    """Elementwise quotient with broadcasting, in f32 or f64, rounded to the type of `a`."""

    a: Tree
    b: Tree


@dataclass(frozen=True, slots=True)
class Sqrt:
    """Elementwise square root in f32 or f64, rounded to the type of `x`."""

    x: Tree


@dataclass(frozen=True, slots=True)
class MatMul:
    """Matrix product of the last two axes, in f32 or f64, rounded to the type of `a`."""

    a: Tree
    b: Tree


@dataclass(frozen=True, slots=True)
class Quantize:
    """`clip(round_half_even(x / scale) + zero)` in the range of `dtype`.

    `scale` and `zero` broadcast against `x`.
    """

    x: Tree
    scale: Tree
    zero: Tree | None
    dtype: DType


Movement = Slice | Gather | Permute | Transpose | Reshape | Concat
Pointwise = Cast | Mul | Add | Div | Sqrt | Quantize
"""Steps whose elements follow from the elements at the same place."""
Computation = Pointwise | MatMul
Step = Movement | Computation
Tree = Source | Literal | Step
STEPS: tuple[type[Step], ...] = (
    Slice, Gather, Permute, Transpose, Reshape, Concat,
    Cast, Mul, Add, Div, Sqrt, MatMul, Quantize,
)  # fmt: skip


def children(tree: Tree) -> list[Tree]:
    """Returns the operands of a step in order (none for a leaf)."""
    found: list[Tree] = []
    for item in fields(tree):
        value = getattr(tree, item.name)
        if isinstance(value, Tree):
            found.append(value)
        elif item.name == "xs":
            found.extend(value)
    return found


def sources(tree: Tree) -> Iterator[Source]:
    """Iterates over the sources of a tree, with repetitions."""
    if isinstance(tree, Source):
        yield tree
    for child in children(tree):
        yield from sources(child)


def with_sources(tree: Tree, new: Callable[[Source], Source]) -> Tree:
    """Returns the tree with every source replaced by `new` of it."""
    if isinstance(tree, Source):
        return new(tree)
    changes: dict[str, Any] = {}
    for item in fields(tree):
        value = getattr(tree, item.name)
        if isinstance(value, Tree):
            changes[item.name] = with_sources(value, new)
        elif item.name == "xs":
            changes["xs"] = tuple(with_sources(x, new) for x in value)
    return replace(tree, **changes) if changes else tree


def digest(tree: Tree) -> str:
    """Returns a hash of the structure, its parameters and the sources' names and types."""
    state = hashlib.sha256()
    _digest(tree, state)
    return state.hexdigest()


def _digest(tree: Tree, state: Any) -> None:
    if isinstance(tree, Source):
        state.update(f"{tree.name!r}:{tree.weight.dtype}{tree.weight.shape}".encode())
        return
    state.update(f"{type(tree).__name__}(".encode())
    for item in fields(tree):
        value = getattr(tree, item.name)
        if not isinstance(value, Tree) and item.name != "xs":
            state.update(value if isinstance(value, bytes) else f"{value!r},".encode())
    for child in children(tree):
        _digest(child, state)
    state.update(b")")


def describe(tree: Tree) -> tuple[DType, Shape]:
    """Returns element type and shape of a tree; cost O(steps).

    Raises:
        ValueError: When a step does not fit its operands.
    """
    if isinstance(tree, Source | Literal):
        leaf = tree.weight if isinstance(tree, Source) else tree
        return leaf.dtype, leaf.shape
    types = [describe(child) for child in children(tree)]
    dtype, shape = types[0]
    if isinstance(tree, Computation):
        return _describe_computation(tree, dtype, [shape for _, shape in types])
    match tree:
        case Slice(_, axis, start, stop, step):
            size = _size(tree, shape, axis)
            if not 0 <= start <= stop <= size or step < 1:
                raise _wrong(tree, f"{start}:{stop}:{step} is no range of {size} positions")
            return dtype, _with(shape, axis, len(range(start, stop, step)))
        case Gather(_, axis, indices) | Permute(_, axis, indices):
            _check_positions(tree, indices, _size(tree, shape, axis))
            return dtype, _with(shape, axis, len(indices))
        case Transpose(_, perm):
            if sorted(perm) != list(range(len(shape))):
                raise _wrong(tree, f"{list(perm)} is no order of {len(shape)} axes")
            return dtype, tuple(shape[axis] for axis in perm)
        case Reshape(_, target):
            if math.prod(target) != math.prod(shape):
                raise _wrong(tree, f"{list(shape)} does not fit {list(target)}")
            return dtype, target
        case Concat(_, axis):
            size = sum(_size(tree, other, axis) for _, other in types)
            if len({(t, _with(s, axis, 0)) for t, s in types}) > 1:
                raise _wrong(tree, "the parts differ beside the axis")
            return dtype, _with(shape, axis, size)


def _describe_computation(
    tree: Computation, dtype: DType, shapes: list[Shape]
) -> tuple[DType, Shape]:
    shape = shapes[0]
    match tree:
        case Cast():
            return tree.dtype, shape
        case Sqrt():
            return dtype, shape
        case Mul() | Add() | Div():
            return dtype, _broadcast(tree, shape, shapes[1])
        case MatMul():
            other = shapes[1]
            if len(shape) < 2 or len(other) < 2 or shape[-1] != other[-2]:
                raise _wrong(tree, f"{list(shape)} times {list(other)}")
            return dtype, (*_broadcast(tree, shape[:-2], other[:-2]), shape[-2], other[-1])
        case Quantize():
            if any(_broadcast(tree, shape, other) != shape for other in shapes[1:]):
                raise _wrong(tree, "the scale has more axes or sizes than the tensor")
            return tree.dtype, shape


def _check_positions(tree: Gather | Permute, indices: tuple[int, ...], size: int) -> None:
    if any(not 0 <= idx < size for idx in indices):
        raise _wrong(tree, f"a position is outside 0..{size - 1}")
    if isinstance(tree, Permute) and sorted(indices) != list(range(size)):
        raise _wrong(tree, f"not an order of {size} positions")


def _size(tree: Step, shape: Shape, axis: int) -> int:
    if not 0 <= axis < len(shape):
        raise _wrong(tree, f"axis {axis} is outside rank {len(shape)}")
    return shape[axis]


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _broadcast(tree: Step, a: Shape, b: Shape) -> Shape:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise _wrong(tree, f"{list(a)} and {list(b)} do not broadcast") from None


def _wrong(tree: Step, what: str) -> ValueError:
    return ValueError(f"{type(tree).__name__.lower()}: {what}")
