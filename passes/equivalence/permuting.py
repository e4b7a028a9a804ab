"""Another order of the positions of a coupled group, everywhere at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, literal
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Node
from regraft.ir.steps import Permute
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.analysis.coupling.groups import touched
from regraft.passes.analysis.coupling.positions import kept_positions
from regraft.passes.analysis.coupling.spaces import Space

Array = np.ndarray[Any, Any]


def permute_module(coupling: Coupling, orders: Mapping[Group, Array]) -> int:
    """Puts positions of groups into another order, in place; returns the number of weights.

    Sizes stay, so that nothing is inferred again. Inputs and outputs of the graph are pinned: no
    group stands in them, and results are the same in every bit but for the order of sums.

    Args:
        coupling: Of the module as it is.
        orders: For each group the old positions in their new order, i64[size].

    Raises:
        ValueError: When an order is no permutation of a group's positions.
    """
    kept: dict[Space, Array] = {}
    for group, order in orders.items():
        if not np.array_equal(np.sort(order), np.arange(group.size)):
            raise ValueError(f"the order of `{group.name}` is no permutation of {group.size}")
        kept[group.space] = order
    sizes = dict.fromkeys(kept, 0)
    store, count = coupling.module.weights, 0
    for name, spaces in coupling.builder.weights.items():
        tree = None
        for axis, space in enumerate(spaces):
            if touched(space, sizes):
                order = kept_positions(space, kept)
                tree = Permute(tree or derive(name, store[name]), axis, tuple(map(int, order)))
        if tree is not None:
            store.set(name, DerivedWeight(tree))
            count += 1
    for node in list(coupling.module.graph.walk()):
        _node(coupling, node, kept, sizes)
    return count


def _node(
    coupling: Coupling, node: Node, kept: dict[Space, Array], sizes: dict[Space, int]
) -> None:
    if node.op is literal:
        array: Array = node.attrs["value"]
        for axis, space in enumerate(coupling.axes(node.output)):
            if touched(space, sizes):
                array = np.take(array, kept_positions(space, kept), axis)
        node.attrs["value"] = array
    elif node in coupling.builder.picks:
        source, positions, made = coupling.builder.picks[node]
        indices = node.inputs[1]
        old = constant_of(indices)
        if indices is None or old is None or node.graph is None or not touched(source, sizes):
            return
        if made:
            positions = positions[np.ix_(*(kept_positions(space, kept) for space in made))]
        order = kept_positions(source, kept)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        moved = place[positions]
        shape = (*moved.shape, *(1,) * ((indices.rank or 0) - moved.ndim))
        b = Builder(node.graph, node, node.loc)
        node.set_operand(1, b.constant(moved.reshape(shape).astype(old.dtype)))
