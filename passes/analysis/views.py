"""Axes as products of factors: what reshapes, transposes and expands do to a value, all at once.

Exporters move axes in many ways: `[B, S, H*D] -> [B, S, H, D] -> [B, H, S, D]`, batch and heads
folded into one axis, a transposed copy, keys repeated for groups of heads. A `View` says what is
left of such a chain: the value it starts at, and for every axis of its end the factors (atoms) of
the start's axes that it consists of. Atoms split when a reshape splits their axis, and atoms of
different values are identified where an operator pairs their axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import DimLike, exact_quotient, known_equal, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, cast, gathering, repeating, reshaping
from regraft.ir.types import DType
from regraft.passes.analysis.fills import filled

Shape = Sequence[DimLike]


class Atom:
    """A factor of an axis: its size, the factors it was split into, or the atom it equals."""

    __slots__ = ("_link", "_parts", "size")

    def __init__(self, size: DimLike) -> None:
        self.size = size
        self._parts: tuple[Atom, ...] = ()
        self._link: Atom | None = None

    def leaves(self) -> list[Atom]:
        """Returns the atoms that stand for this one, outermost (slowest) first."""
        atom = self
        while atom._link is not None:
            atom = atom._link
        if not atom._parts:
            return [atom]
        return [leaf for part in atom._parts for leaf in part.leaves()]

    def split(self, first: DimLike, second: DimLike) -> None:
        """Splits a leaf into two factors."""
        self._parts = (Atom(first), Atom(second))

    def __repr__(self) -> str:
        return f"<atom {self.size}>"


Axis = list[Atom]
Axes = list[Axis]


def leaves(axis: Iterable[Atom]) -> Axis:
    """Returns the leaf atoms of an axis."""
    return [leaf for atom in axis for leaf in atom.leaves()]


def size_of(axis: Iterable[Atom]) -> DimLike:
    """Returns the product of the sizes of atoms."""
    return product(atom.size for atom in axis)


def axes_of(shape: Shape) -> Axes:
    """Returns one atom per axis; an axis of size 1 has none."""
    return [[] if dim == 1 else [Atom(dim)] for dim in shape]


def reshaped(axes: Axes, shape: Shape) -> Axes | None:
    """Returns the axes of a reshape to `shape`, None where the factors are not found."""
    rest = [leaf for axis in axes for leaf in leaves(axis)]
    rest.reverse()
    result: Axes = []
    for dim in shape:
        axis: Axis = []
        wanted: DimLike = dim
        while not known_equal(wanted, 1):
            if not rest:
                return None
            atom = rest[-1]
            left = exact_quotient(wanted, atom.size)
            if left is not None:
                axis.append(rest.pop())
                wanted = left
                continue
            inner = exact_quotient(atom.size, wanted)
            if inner is None:
                return None
            atom.split(wanted, inner)
            rest.pop()
            rest.extend(reversed(atom.leaves()))
        result.append(axis)
    return result if not rest else None


def unify(a: Axis, b: Axis) -> bool:
    """Identifies the atoms of two axes that run over the same positions; False when they cannot."""
    left, right = leaves(a)[::-1], leaves(b)[::-1]
    while left and right:
        x, y = left[-1], right[-1]
        if x is y or known_equal(x.size, y.size) or (len(left) == 1 and len(right) == 1):
            left.pop()
            right.pop()
            if x is not y:
                x._link = y
            continue
        inner = exact_quotient(x.size, y.size)
        if inner is not None:
            x.split(y.size, inner)
            left[-1:] = x.leaves()[::-1]
            continue
        inner = exact_quotient(y.size, x.size)
        if inner is None:
            return False
        y.split(x.size, inner)
        right[-1:] = y.leaves()[::-1]
    return not left and not right


@dataclass(frozen=True, slots=True)
class View:
    """A value as another axes' order of a base.

    Attributes:
        base: The value that the chain of data movement starts at.
        base_axes: Its axes.
        axes: The axes of the end of the chain; an atom that no axis of the base has is broadcast.
        scale: A number that the chain multiplies by.
    """

    base: Value
    base_axes: Axes
    axes: Axes
    scale: float = 1.0

    def atoms(self) -> set[Atom]:
        """Returns the leaf atoms of the base."""
        return {leaf for axis in self.base_axes for leaf in leaves(axis)}


def moved(node: Node, axes: Axes) -> Axes | None:
    """Returns the axes of a data movement's result from those of its operand, or None."""
    x, out = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or out.shape is None:
        return None
    op = node.op
    if op is reshaping.reshape or op is reshaping.squeeze or op is reshaping.unsqueeze:
        return reshaped(axes, out.shape)
    if op is reshaping.transpose:
        perm = node.attrs["perm"] or tuple(range(len(axes)))[::-1]
        return [axes[i] for i in perm]
    if op is repeating.expand:
        return _expanded(axes, x.shape, out.shape)
    if op is repeating.tile:
        return _tiled(node, axes)
    if op is gathering.gather:
        return _repeated(node, axes)
    return axes if op is cast.identity else None


def _expanded(axes: Axes, before: Shape, after: Shape) -> Axes | None:
    lead = len(after) - len(before)
    result: Axes = []
    for i, dim in enumerate(after):
        old = before[i - lead] if i >= lead else 1
        if old == 1:
            result.append([] if dim == 1 else [Atom(dim)])
        else:
            result.append(axes[i - lead])
    return result


def _tiled(node: Node, axes: Axes) -> Axes | None:
    repeats = node.static("repeats")
    if not isinstance(repeats, tuple) or len(repeats) != len(axes):
        return None
    return [
        axis if count == 1 else [Atom(count), *axis]
        for axis, count in zip(axes, repeats, strict=True)
    ]


def _repeated(node: Node, axes: Axes) -> Axes | None:
    """A gather whose constant indices repeat every position, or all positions, equally often."""
    x, indices = node.inputs[0], constant_of(node.inputs[1])
    if x is None or x.shape is None or indices is None or indices.ndim != 1:
        return None
    axis = node.attrs["axis"] % len(axes)
    size = x.shape[axis]
    if not isinstance(size, int) or size == 0 or indices.size % size:
        return None
    count = indices.size // size
    result = list(axes)
    if np.array_equal(indices, np.repeat(np.arange(size), count)):
        result[axis] = [*axes[axis], Atom(count)]
    elif np.array_equal(indices, np.tile(np.arange(size), count)):
        result[axis] = [Atom(count), *axes[axis]]
    else:
        return None
    if count == 1:
        result[axis] = axes[axis]
    return result


def scalar_factor(node: Node) -> tuple[int, float] | None:
    """Returns (operand, factor) where a node multiplies one operand by a constant number."""
    if node.op is arithmetic.mul:
        for idx in (0, 1):
            number = _number(node, 1 - idx)
            if number is not None:
                return idx, number
    elif node.op is arithmetic.div:
        number = _number(node, 1)
        if number is not None and number != 0.0:
            return 0, 1.0 / number
    elif node.op is arithmetic.neg:
        return 0, -1.0
    return None


def _number(node: Node, idx: int) -> float | None:
    """Returns the number that an operand holds everywhere, when it does not add axes."""
    value, other = node.inputs[idx], node.inputs[1 - idx]
    if value is None or other is None or other.shape != node.outputs[0].shape:
        return None
    if value.dtype is None or not value.dtype.is_float:
        return None
    return filled(value)


def view_of(value: Value, *, scales: bool = False) -> View:
    """Returns the view that ends at `value`, traced back as far as data only moves.

    Args:
        value: The end; its shape is known.
        scales: Look through multiplication by numbers too.
    """
    steps: list[tuple[Node, float | None]] = []
    current = value
    while True:
        node = current.producer
        if node is None or current.index:
            break
        factor = None
        source = node.inputs[0] if is_movement(node) else None
        if source is None and scales:
            scaled = scalar_factor(node)
            if scaled is not None:
                source, factor = node.inputs[scaled[0]], scaled[1]
        if source is None or source.shape is None:
            break
        steps.append((node, factor))
        current = source
    while True:
        axes = base_axes = axes_of(current.shape or ())
        scale = 1.0
        for i in range(len(steps) - 1, -1, -1):
            node, factor = steps[i]
            if factor is not None:
                scale *= factor
                continue
            after = moved(node, axes)
            if after is None:  # positions mix here: the chain is known only above
                current = node.outputs[0]
                del steps[i:]
                break
            axes = after
        else:
            return View(current, base_axes, axes, scale)


_MOVEMENT = frozenset(
    {
        reshaping.reshape, reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze,
        repeating.expand, repeating.tile, cast.identity,
    }
)  # fmt: skip


def is_movement(node: Node) -> bool:
    """Returns whether a node only moves or repeats whole axes of its first operand."""
    if node.op is gathering.gather:
        indices = node.inputs[1]
        return indices is not None and is_constant(indices) and indices.rank == 1
    return node.op in _MOVEMENT


def emit_view(b: Builder, view: View, target: Sequence[Axis]) -> Value:
    """Builds the base with the axes `target` (leaf atoms per axis), in at most four operators.

    An axis none of whose atoms the base has gets size 1; one of which it has some is expanded.

    Raises:
        ValueError: When the target leaves out an atom of the base.
    """
    own = [leaf for axis in view.base_axes for leaf in leaves(axis)]
    wanted = [leaves(axis) for axis in target]
    present = set(own)
    order = [atom for axis in wanted for atom in axis if atom in present]
    if len(order) != len(own) or set(order) != present:
        raise ValueError("the target has other atoms than the base")
    x = view.base
    if order != own:
        x = _reshape(b, x, [atom.size for atom in own])
        x = b.op(reshaping.transpose, x, perm=tuple(own.index(atom) for atom in order))
    partial = [bool(set(axis) & present) and not set(axis) <= present for axis in wanted]
    if any(partial):
        narrow: list[DimLike] = []
        wide: list[DimLike] = []
        for axis, is_partial in zip(wanted, partial, strict=True):
            if not is_partial:
                size = size_of(a for a in axis if a in present)
                narrow.append(size)
                wide.append(size)
                continue
            narrow.extend(atom.size if atom in present else 1 for atom in axis)
            wide.extend(atom.size for atom in axis)
        x = b.op(repeating.expand, _reshape(b, x, narrow), shape=tuple(wide))
    sizes = [
        size_of(axis if is_partial else [a for a in axis if a in present])
        for axis, is_partial in zip(wanted, partial, strict=True)
    ]
    return _reshape(b, x, sizes)


def _reshape(b: Builder, x: Value, sizes: Sequence[DimLike]) -> Value:
    return x if x.shape == tuple(sizes) else b.op(reshaping.reshape, x, shape=tuple(sizes))


def is_float(dtype: DType | None) -> bool:
    """Returns whether a type is known to be a float."""
    return dtype is not None and dtype.is_float
