"""Applies a choice of kept positions to a module: weights, literals, sizes, types.

Sizes are written from the spaces of the axes; inference then only checks that they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, literal, weight
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.dims import DimLike, known_different
from regraft.ir.errors import TypeInferenceError, UnsupportedError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.fill import constant_of_shape
from regraft.ir.ops.slicing import slice_, sliced_axes, split
from regraft.ir.steps import Gather, Slice, Tree
from regraft.ir.types import TensorType
from regraft.passes.analysis.coupling.groups import (
    Coupling,
    Group,
    describe,
    new_size,
    touched,
)
from regraft.passes.analysis.coupling.positions import Kept, kept_positions
from regraft.passes.analysis.coupling.spaces import Space, leaves_of

Array = np.ndarray[Any, Any]


def slice_module(coupling: Coupling, choice: Mapping[Group, Array]) -> int:
    """Drops what a choice does not keep, in place; returns the number of sliced weights.

    The module must be as the coupling saw it. What fails leaves it as it was.

    Raises:
        UnsupportedError: When inference contradicts the sizes of the plan: operator, axis, plan.
    """
    kept: dict[Space, Array] = {
        group.space: rows for group, rows in choice.items() if rows.shape[-1] < group.size
    }
    snapshot = coupling.module.clone()
    slicer = _Slicer(coupling, kept)
    try:
        count = slicer.weights()
        slicer.states()
        for node in coupling.module.graph.walk():
            slicer.node(node)
    except Exception:
        coupling.module.restore(snapshot)
        raise
    return count


class _Slicer:
    def __init__(self, coupling: Coupling, kept: Kept) -> None:
        self.coupling = coupling
        self.module: Module = coupling.module
        self.kept = kept
        self.sizes: dict[Space, DimLike] = {space: rows.shape[-1] for space, rows in kept.items()}

    def weights(self) -> int:
        """Replaces every touched weight by a derived one under the same name."""
        store, count = self.module.weights, 0
        for name, spaces in self.coupling.builder.weights.items():
            if not any(touched(space, self.sizes) for space in spaces):
                continue
            tree = derive(name, store[name])
            for axis, space in enumerate(spaces):
                if touched(space, self.sizes):
                    tree = _take(tree, axis, kept_positions(space, self.kept))
            store.set(name, DerivedWeight(tree))
            count += 1
        return count

    def states(self) -> None:
        """Gives touched states their new types."""
        for value in self.module.graph.inputs:
            shape = self.shape(value)
            if shape is not None and isinstance(value.type, TensorType):
                value.type = value.type.with_shape(shape)

    def shape(self, value: Value) -> tuple[DimLike, ...] | None:
        """Returns the planned shape of a touched value, None for others."""
        spaces = self.coupling.axes(value)
        if not any(touched(space, self.sizes) for space in spaces):
            return None
        return tuple(new_size(space, self.sizes) for space in spaces)

    def node(self, node: Node) -> None:
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        planned = [self.shape(value) for value in node.outputs]
        if all(self.shape(value) is None for value in values):
            return
        self._attrs(node)
        for value, shape in zip(node.outputs, planned, strict=True):
            if shape is not None and value.name and not value.is_output and node.op is not weight:
                value.name = f"{value.name}.pruned"
        before = [value.shape for value in node.outputs]
        try:
            node.infer()
        except TypeInferenceError as error:
            raise self._refusal(node, planned, error.message) from error
        for value, old, shape in zip(node.outputs, before, planned, strict=True):
            reason = _disagreement(value.shape, old if shape is None else shape)
            if reason:
                raise self._refusal(node, planned, f"`{value.name}` {reason}")

    def _refusal(
        self, node: Node, planned: Sequence[tuple[DimLike, ...] | None], reason: str
    ) -> UnsupportedError:
        """Says where plan and inference part, and how to leave the place out."""
        place = next((value.name for value in node.outputs if value.name), "")
        names = {g.space: g.name for g in self.coupling.groups if g.space in self.sizes}
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        spaces = [space for value in values for space in self.coupling.axes(value)]
        forms = dict.fromkeys(
            f"{describe(space, names)} = {new_size(space, self.sizes)} of {space.size}"
            for space in spaces
            if touched(space, self.sizes)
        )
        leaves = {leaf for space in spaces for leaf in leaves_of(space)}
        held = [
            name
            for group in self.coupling.groups
            if group.space in leaves and group.space in self.sizes
            for name, _ in group.weights[:1]
        ]
        return UnsupportedError(
            f"pass `prune`: {node.op.name} `{place}` does not take the plan ({', '.join(forms)}; "
            f"results {', '.join(str(shape) for shape in planned)}): {reason}",
            hint=f"nothing was changed; leave its groups whole with `keep=[{','.join(held)}]`, "
            "and report the operator",
        )

    def _attrs(self, node: Node) -> None:
        """Writes the sizes that a node states."""
        op = node.op
        if op is literal:
            node.attrs["value"] = self._literal(node)
        elif op is slice_:
            self._slice(node)
        elif op is split:
            axis = node.attrs["axis"] % (node.output.rank or 1)
            if node.inputs[1] is None:
                parts = [self.coupling.axes(value)[axis] for value in node.outputs]
                node.attrs["sizes"] = tuple(new_size(part, self.sizes) for part in parts)
        elif node in self.coupling.builder.picks:
            self._pick(node)
        elif op is constant_of_shape:
            node.attrs["shape"] = self.shape(node.output) or node.attrs["shape"]
        elif op.counts:
            self._counts(node)

    def _literal(self, node: Node) -> Array:
        array: Array = node.attrs["value"]
        for axis, space in enumerate(self.coupling.axes(node.output)):
            if touched(space, self.sizes):
                array = np.take(array, kept_positions(space, self.kept), axis)
        return array

    def _slice(self, node: Node) -> None:
        axes = sliced_axes(node) or ()
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        steps = node.attrs["steps"] or (1,) * len(axes)
        for axis, before, taken in self.coupling.builder.parts.get(node, ()):
            source = node.inputs[0]
            if source is None or not touched(self.coupling.axes(source)[axis], self.sizes):
                continue
            idx = axes.index(axis)
            starts[idx] = new_size(before, self.sizes)
            size = new_size(taken, self.sizes)
            ends[idx] = starts[idx] + size if steps[idx] == 1 else size
        node.attrs["starts"], node.attrs["ends"] = tuple(starts), tuple(ends)

    def _pick(self, node: Node) -> None:
        """Writes the constant indices of a gather for what is left of its source."""
        source, positions, made = self.coupling.builder.picks[node]
        indices = node.inputs[1]
        if indices is None or node.graph is None or not touched(source, self.sizes):
            return
        if made:
            positions = positions[np.ix_(*(kept_positions(space, self.kept) for space in made))]
        moved = np.searchsorted(kept_positions(source, self.kept), positions)
        # gather_nd has an axis of one number per index
        shape = (*moved.shape, *(1,) * ((indices.rank or 0) - moved.ndim))
        old = constant_of(indices)
        if old is None:
            raise self._refusal(node, [], "its indices are no constant any more")
        builder = Builder(node.graph, before=node, loc=node.loc)
        node.set_operand(1, builder.constant(moved.reshape(shape).astype(old.dtype)))

    def _counts(self, node: Node) -> None:
        for name, spaces in self.coupling.builder.stated.get(node, {}).items():
            sizes = tuple(new_size(space, self.sizes) for space in spaces)
            node.attrs[name] = sizes if isinstance(node.attrs[name], tuple) else sizes[0]
        for name, text in node.op.counts.items():
            shape = self.shape(node.output)
            if text == "->" and shape is not None and node.attrs[name] is not None:
                # a target shape may have fewer axes than the result that it is broadcast to
                node.attrs[name] = shape[len(shape) - len(node.attrs[name]) :]


def _disagreement(
    found: tuple[DimLike, ...] | None, planned: tuple[DimLike, ...] | None
) -> str | None:
    """Says on which axis inference differs from the plan, where it knows a size."""
    if found is None or planned is None:
        return None if found is planned else f"has shape {found}, planned was {planned}"
    if len(found) != len(planned):
        return f"has {len(found)} axes, planned were {len(planned)}"
    for axis, (a, b) in enumerate(zip(found, planned, strict=True)):
        if known_different(a, b):
            return f"axis {axis} has {a} positions, planned were {b}"
    return None


def _take(tree: Tree, axis: int, positions: Array) -> Tree:
    first, count = int(positions[0]), len(positions)
    if int(positions[-1]) - first == count - 1:
        return Slice(tree, axis, first, first + count)
    return Gather(tree, axis, tuple(int(i) for i in positions))
