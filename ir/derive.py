"""Derived weights: tensors that follow from others by recorded steps, evaluated when they are read.

Evaluation asks for a window (a range per axis) and passes it down the tree, so that a slice of a
concat reads only the parts it needs and a memory-mapped source only the pages it needs. A computed
tensor is made block by block, so that its intermediate results stay small. Computed parts stay in a
cache of bounded bytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, assert_never

import ml_dtypes
import numpy as np

from regraft.ir.stacked import StackedWeight
from regraft.ir.steps import (
    Add,
    Cast,
    Computation,
    Concat,
    Div,
    Gather,
    Literal,
    MatMul,
    Mul,
    Permute,
    Pointwise,
    Quantize,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Transpose,
    Tree,
    children,
    describe,
    sources,
)
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight

Array = np.ndarray[Any, Any]
Window = tuple[tuple[int, int], ...]  # (start, stop) per axis

_BLOCK_BYTES = 1 << 22
"""Rows of a computed tensor of this size are made at once."""


class WeightCache:
    """Computed tensors, the least recently used dropped when they exceed `max_bytes`."""

    __slots__ = ("_arrays", "_num_bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._arrays: OrderedDict[tuple[Tree, Window], Array] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._num_bytes

    def get(self, key: tuple[Tree, Window]) -> Array | None:
        """Returns a tensor and marks it as used, or None."""
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
        return array

    def put(self, key: tuple[Tree, Window], array: Array) -> None:
        """Keeps a tensor unless it alone exceeds the bound."""
        if array.nbytes > self.max_bytes or key in self._arrays:
            return
        self._arrays[key] = array
        self._num_bytes += array.nbytes
        while self._num_bytes > self.max_bytes:
            _, dropped = self._arrays.popitem(last=False)
            self._num_bytes -= dropped.nbytes


@dataclass(slots=True)
class _Reading:
    """One evaluation: every source is loaded once, as some are made anew at each call."""

    cache: WeightCache | None
    loaded: dict[int, Array] = field(default_factory=dict)
    last: tuple[StackedWeight, int, Array] | None = None

    def entry(self, weight: StackedWeight, idx: int) -> Array:
        """Returns one entry of a stack; windows read it several times in a row."""
        if self.last is None or self.last[0] is not weight or self.last[1] != idx:
            self.last = weight, idx, weight.entry(idx)
        return self.last[2]

    def source(self, weight: Weight) -> Array:
        array = self.loaded.get(id(weight))
        if array is None:
            array = self.loaded[id(weight)] = weight.numpy()
        return array


class DerivedWeight:
    """A weight given by a tree of steps.

    Attributes:
        tree: The steps.
        dtype: Element type.
        shape: Sizes.
    """

    __slots__ = ("_cache", "dtype", "shape", "tree")

    def __init__(self, tree: Tree, cache: WeightCache | None = None) -> None:
        """Describes the tree; reads nothing.

        Args:
            tree: The steps.
            cache: Where computed tensors are kept; None keeps none.

        Raises:
            ValueError: When a step does not fit its operands.
        """
        self.tree = tree
        self.dtype, self.shape = describe(tree)
        self._cache = cache

    def with_tree(self, tree: Tree) -> DerivedWeight:
        """Returns the weight of another tree, computed tensors kept in the same cache."""
        return DerivedWeight(tree, self._cache)

    @property
    def nbytes(self) -> int:
        """Packed size in bytes."""
        return self.dtype.nbytes(math.prod(self.shape))

    def numpy(self) -> Array:
        """Evaluates the whole tensor; do not write to it."""
        if not isinstance(self.tree, Pointwise) or self.nbytes <= _BLOCK_BYTES:
            return self.read(tuple((0, size) for size in self.shape))
        array = np.empty(self.shape, self.dtype.numpy)
        for rows, block in self.blocks():
            array[rows] = block
        return array

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Evaluates consecutive rows of the first axis, about 4 MiB at a time."""
        size = self.shape[0]
        step = max(1, _BLOCK_BYTES * size // max(self.nbytes, 1))
        reading = _Reading(self._cache)
        rest = tuple((0, size) for size in self.shape[1:])
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield slice(start, stop), _read(self.tree, ((start, stop), *rest), reading)

    def read(self, window: Window) -> Array:
        """Evaluates one window of the tensor.

        Args:
            window: (start, stop) per axis.
        """
        return _read(self.tree, window, _Reading(self._cache))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DerivedWeight) and self.tree == other.tree

    def __hash__(self) -> int:
        return hash(self.tree)

    def __repr__(self) -> str:
        return f"<derived {self.dtype}{list(self.shape)}>"


def derive(name: str, weight: Weight) -> Tree:
    """Returns the tree on which further steps are put: a weight's own steps, else a source."""
    return weight.tree if isinstance(weight, DerivedWeight) else Source(name, weight)


def source_names(name: str, weight: Weight) -> list[str]:
    """Returns the names of the checkpoint tensors that a weight follows from."""
    if isinstance(weight, DerivedWeight):
        return list(dict.fromkeys(source.name for source in sources(weight.tree)))
    made_from: tuple[str, ...] = ()
    if isinstance(weight, ArrayWeight | MappedWeight | StackedWeight):
        made_from = weight.made_from
    return list(made_from) or [name]


def _read(tree: Tree, window: Window, reading: _Reading) -> Array:
    cache = reading.cache
    if cache is None or not isinstance(tree, Computation | Concat) or isinstance(tree, Cast):
        return _evaluate(tree, window, reading)
    array = cache.get((tree, window))
    if array is None:
        array = _evaluate(tree, window, reading)
        cache.put((tree, window), array)
    return array


def _evaluate(tree: Tree, window: Window, reading: _Reading) -> Array:
    match tree:
        case Source(_, StackedWeight() as weight):
            first, last = window[0]
            rest = tuple(slice(*span) for span in window[1:])
            rows = [reading.entry(weight, i)[rest] for i in range(first, last)]
            return np.stack(rows) if rows else weight.numpy()[:0][(slice(None), *rest)]
        case Source(_, weight):
            return reading.source(weight)[tuple(slice(*span) for span in window)]
        case Literal():
            return tree.numpy()[tuple(slice(*span) for span in window)]
        case Slice(x, axis, start, _, step):
            first, last = window[axis]
            inner = (start + first * step, start + max(last - 1, first) * step + (last > first))
            part = _read(x, _with(window, axis, inner), reading)
            return np.asarray(part[(*(slice(None),) * axis, slice(None, None, step))])
        case Gather(x, axis, order) | Permute(x, axis, order):
            taken = np.array(order[slice(*window[axis])], np.int64)
            inner = (int(taken.min()), int(taken.max()) + 1) if taken.size else (0, 0)
            part = _read(x, _with(window, axis, inner), reading)
            return np.take(part, taken - inner[0], axis)
        case Transpose(x, perm):
            spans = dict(zip(perm, window, strict=True))
            return _read(x, tuple(spans[i] for i in range(len(perm))), reading).transpose(perm)
        case Reshape(x, shape):
            return _reshape(x, shape, window, reading)
        case Concat(xs, axis):
            return _concat(xs, axis, window, reading)
        case _:
            return _compute(tree, window, reading)


@np.errstate(all="ignore")  # as the operators: what is out of range becomes Inf or NaN
def _compute(tree: Computation, window: Window, reading: _Reading) -> Array:
    parts = _operands(tree, window, reading)
    dtype = parts[0].dtype
    if isinstance(tree, Cast):
        return parts[0].astype(tree.dtype.numpy)
    wide = [_wide(part) for part in parts]
    match tree:
        case Mul():
            return np.asarray(wide[0] * wide[1]).astype(dtype)
        case Add():
            return np.asarray(wide[0] + wide[1]).astype(dtype)
        case Div():
            return np.asarray(wide[0] / wide[1]).astype(dtype)
        case Sqrt():
            return np.asarray(np.sqrt(wide[0])).astype(dtype)
        case MatMul():
            return np.asarray(wide[0] @ wide[1]).astype(dtype)
        case Quantize():
            return _quantize(
                wide[0], wide[1], wide[2] if tree.zero is not None else None, tree.dtype
            )
        case _:
            assert_never(tree)


def _reshape(x: Tree, shape: tuple[int, ...], window: Window, reading: _Reading) -> Array:
    """Reads only the leading rows of `x` that hold the leading rows of the window."""
    inner = describe(x)[1]
    size, rest = math.prod(shape), window[1:]
    if not shape or not inner or not size:
        whole = _read(x, tuple((0, s) for s in inner), reading).reshape(shape)
        return whole[tuple(slice(*span) for span in window)]
    per_row, inner_per_row = size // shape[0], size // inner[0]
    first, last = window[0][0] * per_row, window[0][1] * per_row
    rows = (first // inner_per_row, -(-last // inner_per_row))
    part = _read(x, (rows, *((0, s) for s in inner[1:])), reading).reshape(-1)
    offset = rows[0] * inner_per_row
    part = part[first - offset : last - offset].reshape(-1, *shape[1:])
    return part[(slice(None), *(slice(*span) for span in rest))]


def _concat(xs: tuple[Tree, ...], axis: int, window: Window, reading: _Reading) -> Array:
    first, last = window[axis]
    parts: list[Array] = []
    start = 0
    for x in xs:
        size = describe(x)[1][axis]
        low, high = max(first - start, 0), min(last - start, size)
        if low < high:
            parts.append(_read(x, _with(window, axis, (low, high)), reading))
        start += size
    if not parts:  # an empty window still has a type and a shape
        parts.append(_read(xs[0], _with(window, axis, (0, 0)), reading))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _operands(tree: Computation, window: Window, reading: _Reading) -> list[Array]:
    if not isinstance(tree, MatMul):
        return [_read(x, _clip(x, window, len(describe(x)[1])), reading) for x in children(tree)]
    (_, a), (_, b) = describe(tree.a), describe(tree.b)
    left = (*_clip(tree.a, window[:-2], len(a) - 2), window[-2], (0, a[-1]))
    right = (*_clip(tree.b, window[:-2], len(b) - 2), (0, b[-2]), window[-1])
    return [_read(tree.a, left, reading), _read(tree.b, right, reading)]


def _clip(x: Tree, window: Window, rank: int) -> Window:
    """Returns the window of a broadcast operand's leading `rank` axes, aligned from the right."""
    if rank == 0:
        return ()
    sizes = describe(x)[1][:rank]
    pairs = zip(sizes, window[len(window) - rank :], strict=True)
    return tuple((0, 1) if size == 1 else span for size, span in pairs)


def _quantize(x: Array, scale: Array, zero: Array | None, dtype: DType) -> Array:
    scaled = x / scale
    if dtype.is_float:
        limit = float(ml_dtypes.finfo(dtype.numpy).max)
        return np.clip(scaled, -limit, limit).astype(dtype.numpy)
    codes = np.rint(scaled) if zero is None else np.rint(scaled) + zero
    low = -(1 << dtype.bits - 1) if dtype.value.startswith("i") else 0
    return np.clip(codes, low, low + (1 << dtype.bits) - 1).astype(dtype.numpy)


def _wide(x: Array) -> Array:
    return x if x.dtype == np.float64 else x.astype(np.float32)


def _with(window: Window, axis: int, span: tuple[int, int]) -> Window:
    return (*window[:axis], span, *window[axis + 1 :])
