"""How much of what every product computes a unit gives, measured on samples.

A unit `u` reaches a product `y = sum_u x_u w_u` with the energy `E[x_u^2] |w_u|^2`, on the scale of
`E[y^2]`: the relative error of `y` when the unit goes, if units were uncorrelated. Shares of all
products that sum over the unit are added. They compare across groups without normalization, and
see both what flows and what is made of it: weights into which norms were folded say nothing alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.ops import conv
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import Space, find, leaves_of
from regraft.passes.protocol import Context, Samples

Array = np.ndarray[Any, Any]
Place = tuple[Value, int]
"""A value and one of its axes."""

_TINY = 1e-30


def energy_shares(
    coupling: Coupling,
    ctx: Context,
    samples: Samples,
    exact: Mapping[tuple[Node, Group], Array] | None = None,
) -> dict[Group, Array]:
    """Returns the share of every unit, f64[blocks * units]; groups no product sums over lack one.

    Products within bodies are not seen.

    Args:
        coupling: The groups.
        ctx: Gives values.
        samples: What is measured on.
        exact: Shares that are known better, by product and group.

    Raises:
        UsageError: Without a source of activations.
    """
    if ctx.activations is None:
        raise UsageError(
            "pass `prune`, option `criterion`: `energy` needs values, and there is no source",
            hint="use it in `regraft convert`, or criterion=l2",
        )
    sums = sums_of(coupling)
    squares = _mean_squares(coupling, ctx, samples, sums)
    groups = {group.space: group for group in coupling.groups}
    shares: dict[Group, Array] = {}
    for node, label, places in sums:
        whole = float(np.mean(squares[node.output, None]))
        sides = [_side(node, place, squares) for place in places]
        spaces = [coupling.axes(value)[axis] for value, axis in places]
        for leaf in dict.fromkeys(leaves_of(label)):
            group = groups.get(leaf)
            if group is None:
                continue
            known = None if exact is None else exact.get((node, group))
            found = _per_unit(sides, spaces, group) / max(whole, _TINY) if known is None else known
            shares[group] = shares.get(group, 0.0) + found
    return shares


def sums_of(coupling: Coupling) -> list[tuple[Node, Space, list[Place]]]:
    """Returns every sum over a label that groups stand in, with the operands' axes."""
    leaves = {group.space for group in coupling.groups}
    found: list[tuple[Node, Space, list[Place]]] = []
    for node, entries in coupling.builder.sums.items():
        if node.graph is not coupling.module.graph or not _is_float(node.output):
            continue
        labels: dict[Space, list[Place]] = {}
        for idx, axis, label in entries:
            value = node.inputs[idx]
            if value is not None and _is_float(value):
                labels.setdefault(find(label), []).append((value, axis))
        for label, places in labels.items():
            if any(leaf in leaves for leaf in leaves_of(label)):
                found.append((node, label, places))
    return found


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_float


def _mean_squares(
    coupling: Coupling,
    ctx: Context,
    samples: Samples,
    sums: list[tuple[Node, Space, list[Place]]],
) -> Mapping[tuple[Value, int | None], Array]:
    """Returns mean squares by value and axis, of results over all axes."""
    assert ctx.activations is not None
    wanted: dict[tuple[Value, int | None], None] = {}
    for node, _, places in sums:
        wanted[node.output, None] = None
        for value, axis in places:
            if not is_constant(value):
                wanted[value, axis] = None
    values = list(dict.fromkeys(value for value, _ in wanted))
    totals: dict[tuple[Value, int | None], Array] = {}
    counts: dict[tuple[Value, int | None], float] = {}
    if not values:
        return totals
    for found in ctx.activations.activations(coupling.module, values, samples):
        squares = {value: np.square(array.astype(np.float64)) for value, array in found.items()}
        for value, place in wanted:
            square = squares[value]
            others = tuple(i for i in range(square.ndim) if i != place)
            totals[value, place] = totals.get((value, place), 0.0) + square.sum(others)
            width = 1 if place is None else square.shape[place]
            counts[value, place] = counts.get((value, place), 0.0) + square.size / max(width, 1)
    return {key: np.asarray(total / max(counts[key], 1.0)) for key, total in totals.items()}


def _side(node: Node, place: Place, squares: Mapping[tuple[Value, int | None], Array]) -> Array:
    """Returns the energy of one operand per position of its summed axis.

    That of a weight is per element of the result: the mean over its other axes, but the sum over
    the taps of a kernel.
    """
    value, axis = place
    found = squares.get((value, axis))
    if found is not None:
        return found
    array = constant_of(value, sys.maxsize)
    assert array is not None, f"`{value.name}` is neither constant nor measured"
    square = np.square(array.astype(np.float64))
    others = tuple(i for i in range(square.ndim) if i != axis)
    taps = square.shape[2:] if node.op in (conv.conv, conv.conv_transpose) else ()
    return np.asarray(square.mean(others) * float(np.prod(taps)))


def _per_unit(sides: list[Array], spaces: list[Space], group: Group) -> Array:
    """Returns products of the sides' energies by unit."""
    size = group.num_blocks * group.size
    if all(side.shape == sides[0].shape for side in sides):
        return by_unit(np.prod(sides, 0), spaces[0], group)[0]
    # axes of other forms (inputs of grouped convolutions): units meet on average
    total, repeats = np.ones(size), []
    for side, space in zip(sides, spaces, strict=True):
        summed, count = by_unit(side, space, group)
        total *= summed / np.maximum(count, 1)
        repeats.append(count)
    return np.asarray(total * np.max(repeats, 0))


def by_unit(energy: Array, space: Space, group: Group) -> tuple[Array, Array]:
    """Returns sums and counts of positions by unit."""
    units = unit_of(space, group.space)
    held = units >= 0
    size = group.num_blocks * group.size
    count = np.bincount(units[held], minlength=size)
    if group.num_blocks > 1 and count.sum() == 0:
        return np.zeros(size), count
    return np.bincount(units[held], energy[held], minlength=size), count
