"""Scores of units from samples: gradients of their weights, and what flows through them."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.ops import conv, linalg
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import Space
from regraft.passes.protocol import Context, Samples

Array = np.ndarray[Any, Any]
Slots = dict[Group, list[tuple[str, Array]]]
"""f64[blocks * units] for every place a group stands in, with the place's name."""

_CONTRACTIONS = (linalg.matmul, linalg.gemm, conv.conv, conv.conv_transpose)


def taylor_slots(coupling: Coupling, ctx: Context, *, signed: bool) -> Slots:
    """Returns the first-order change of the loss when a unit's weights become zero.

    The mean over samples of the sum of |w g|, or (signed) of |sum of w g|, per weight and unit.

    Raises:
        UsageError: Without gradients or samples.
    """
    if ctx.gradients is None:
        raise UsageError(
            "pass `prune`, option `criterion`: `taylor` needs gradients, and there is no source",
            hint="install PyTorch (`pip install regraft[torch]`), or use criterion=l2",
        )
    places = places_of_groups(coupling)
    store = coupling.module.weights
    samples = samples_of(ctx)
    totals: dict[tuple[str, int, Group], Array] = {}
    arrays = {name: store[name].numpy().astype(np.float64) for name in places}
    for gradients in ctx.gradients.gradients(coupling.module, samples, list(places)):
        for name, axes in places.items():
            product = arrays[name] * gradients[name]
            for axis, group in axes:
                space = coupling.builder.weights[name][axis]
                part = per_unit(product if signed else np.abs(product), axis, space, group)
                key = (name, axis, group)
                totals[key] = totals.get(key, 0.0) + np.abs(part) / len(samples)
    slots: Slots = {group: [] for group in coupling.groups}
    for (name, _, group), total in totals.items():
        slots[group].append((name, total))
    return slots


def activation_slots(coupling: Coupling, ctx: Context) -> Slots:
    """Returns the root mean square of what every unit carries into products and convolutions.

    A unit that carries zero is dead. Groups that no product reads (channels of queries and keys)
    are judged by all values that they stand in; groups within bodies have none, and no slots.

    Raises:
        UsageError: Without a source of activations or samples.
    """
    if ctx.activations is None:
        raise UsageError(
            "pass `prune`, option `criterion`: `activation` needs values, and there is no source",
            hint="use it in `regraft convert`, or criterion=l2",
        )
    read = {group: _read_values(coupling, group) for group in coupling.groups}
    values = list(dict.fromkeys(value for places in read.values() for value, _ in places))
    samples = samples_of(ctx) if values else ()
    sums: dict[tuple[Group, int], Array] = {}
    counts: dict[tuple[Group, int], Array] = {}
    source = ctx.activations.activations(coupling.module, values, samples) if values else ()
    for found in source:
        squares = {value: np.square(array.astype(np.float64)) for value, array in found.items()}
        for group, places in read.items():
            for idx, (value, axis) in enumerate(places):
                space, key = coupling.axes(value)[axis], (group, idx)
                square = squares[value]
                sums[key] = sums.get(key, 0.0) + per_unit(square, axis, space, group)
                ones = np.ones((1,) * axis + (square.shape[axis],))
                repeats = square.size // square.shape[axis]
                count = per_unit(ones, axis, space, group) * repeats
                counts[key] = counts.get(key, 0.0) + count
    slots: Slots = {group: [] for group in coupling.groups}
    for (group, idx), total in sums.items():
        name = str(read[group][idx][0].name)
        slots[group].append((name, np.sqrt(total / np.maximum(counts[group, idx], 1))))
    return slots


def samples_of(ctx: Context) -> Samples:
    """Returns the samples to measure on: the user's, else generated ones.

    Raises:
        UsageError: When there are none.
    """
    samples = ctx.samples or ctx.probes
    if not samples:
        raise UsageError(
            "pass `prune`, option `criterion`: it is measured on samples, and there are none",
            hint="give --calibrate DATA, or use criterion=l2",
        )
    return samples


def places_of_groups(coupling: Coupling) -> dict[str, list[tuple[int, Group]]]:
    """Returns the axes of float weights that groups stand in."""
    places: dict[str, list[tuple[int, Group]]] = {}
    for group in coupling.groups:
        for name, axis in group.weights:
            if coupling.module.weights[name].dtype.is_float:
                places.setdefault(name, []).append((axis, group))
    return places


def _read_values(coupling: Coupling, group: Group) -> list[tuple[Value, int]]:
    graph = coupling.module.graph
    usable = [
        (value, axis)
        for value, axis in group.values
        if value.owner is graph and value.dtype is not None and value.dtype.is_float
    ]
    read = [(value, axis) for value, axis in usable if _is_contracted(value)]
    return read or usable


def _is_contracted(value: Value) -> bool:
    return any(
        isinstance(user, Node) and user.op in _CONTRACTIONS and idx == 0 for user, idx in value.uses
    )


def per_unit(array: Array, axis: int, space: Space, group: Group) -> Array:
    """Sums an array over all axes but one, and that one's positions by unit."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    units = unit_of(space, group.space)
    held = units >= 0
    per_position = array.sum(others)
    size = group.num_blocks * group.size
    return np.bincount(units[held], per_position[held], minlength=size)
