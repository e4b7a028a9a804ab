"""Units that may go without a trace: dead ones, and duplicates of others.

A unit is dead when every sum over it gets zero from it: its values are zero (proven by interval
bounds, or zero on every sample), or the weights that read them are. It is a duplicate when all
weights that make it equal those of another unit: then both carry the same values, and the weights
that read it are added to those that read its twin. Groups are left alone where that would not
hold: norms count the units, states or bodies hold them, or two values that data makes are
multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.axes import Role
from regraft.ir.axis_binding import bind_node, rule_of
from regraft.ir.constants import constant_of, is_constant, literal, weight
from regraft.ir.graph import Node, Value
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import leaves_of
from regraft.passes.analysis.intervals import Intervals

Array = np.ndarray[Any, Any]

_EQUAL = 1e-6
"""How far the weights of duplicates may differ, relative to the largest of the group: a few f32
roundings."""


@dataclass(frozen=True, slots=True)
class Redundant:
    """What may go of one group.

    Args:
        dead: Units that carry nothing, ascending.
        twins: Duplicate -> the unit that takes over what it carried; no unit is both.
    """

    dead: tuple[int, ...] = ()
    twins: Mapping[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many units go."""
        return len(self.dead) + len(self.twins)


@dataclass(slots=True)
class _Reads:
    """What sums over a group's units, and what makes them.

    Attributes:
        sums: Per sum: the operands' values and axes.
        made_by: (name of a weight, axis) or (literal, axis), that give units their values.
        read_by: (name, axis) of weights that read units, each once.
    """

    sums: list[list[tuple[Value, int]]]
    made_by: list[tuple[str | Value, int]]
    read_by: list[tuple[str, int]]


def find_redundant(
    coupling: Coupling, silent: Mapping[Group, Array] | None = None
) -> dict[Group, Redundant]:
    """Returns what may go, for the groups where something may.

    Args:
        coupling: The groups.
        silent: bool[units] of groups: units that carried nothing on samples; None asks for proofs.
    """
    bounds = Intervals(coupling.module.graph)
    found: dict[Group, Redundant] = {}
    for group in coupling.groups:
        reads = _reads(coupling, group)
        if reads is None:
            continue
        dead = _dead(coupling, group, reads, bounds)
        if silent is not None and group in silent:
            dead |= silent[group]
        if dead.all():
            dead[0] = False
        twins = _twins(coupling, group, reads, ~dead)
        item = Redundant(tuple(int(i) for i in np.flatnonzero(dead)), twins)
        if item.count:
            found[group] = item
    return found


def kept_of(group: Group, item: Redundant) -> Array:
    """Returns the units that stay, ascending."""
    gone = {*item.dead, *item.twins}
    return np.array([unit for unit in range(group.size) if unit not in gone], np.int64)


def merge_twins(coupling: Coupling, found: Mapping[Group, Redundant]) -> None:
    """Adds the weights that read duplicates to those that read their twins, in place."""
    store = coupling.module.weights
    for group, item in found.items():
        reads = _reads(coupling, group) if item.twins else None
        if reads is None:
            continue
        for name, axis in reads.read_by:
            stored = store[name]
            units = unit_of(coupling.builder.weights[name][axis], group.space)
            array = np.moveaxis(stored.numpy().astype(np.float64), axis, 0).copy()
            for duplicate, twin in item.twins.items():
                array[units == twin] += array[units == duplicate]
            result = np.moveaxis(array, 0, axis).astype(stored.numpy().dtype)
            store.set(name, ArrayWeight(np.ascontiguousarray(result)))


def _reads(coupling: Coupling, group: Group) -> _Reads | None:
    """Returns how a group is made and read, None where nothing can be said."""
    graph = coupling.module.graph
    if group.counted or group.num_blocks > 1:
        return None
    if any(value.owner is not graph for value, _ in group.values):
        return None
    sums: list[list[tuple[Value, int]]] = []
    summed: set[tuple[str, int]] = set()
    nodes = {
        node: None
        for value, _ in group.values
        for node in (value.producer, *value.users)
        if node is not None
    }
    for node in nodes:
        if _keeps_order(node, coupling, group):
            return None
        entries = [
            (node.inputs[idx], axis)
            for idx, axis, label in coupling.builder.sums.get(node, ())
            if group.space in leaves_of(label)
        ]
        places = [(value, axis) for value, axis in entries if value is not None]
        if not places:
            continue
        sums.append(places)
        summed |= {
            (_weight_name(coupling, value), axis) for value, axis in places if _is_weight(value)
        }
    made: list[tuple[str | Value, int]] = [
        (name, axis) for name, axis in group.weights if (name, axis) not in summed
    ]
    made += [
        (value, axis)
        for value, axis in group.values
        if value.producer is not None and value.producer.op is literal
    ]
    return _Reads(sums, made, [place for place in group.weights if place in summed])


def _keeps_order(node: Node, coupling: Coupling, group: Group) -> bool:
    """Returns whether a node mixes units in another way than by sums: recurrences, experts."""
    if is_constant(node.outputs[0]):
        return False
    rule = rule_of(node)
    if node.bodies or rule is None:
        return bool(node.bodies)
    try:
        bound = bind_node(node, rule, with_results=True)
    except ValueError:
        return True
    fixed = {name for name, role in rule.roles().items() if role is Role.FIXED}
    pairs = [
        *zip(node.inputs, bound.operands, strict=False),
        *zip(node.outputs, bound.results, strict=False),
    ]
    for value, axes in pairs:
        if value is None or axes is None:
            continue
        for axis, space in zip(axes, coupling.axes(value), strict=False):
            names = {factor.name.rstrip("0123456789") for factor in axis}
            if group.space in leaves_of(space) and names & fixed:
                return True
    return False


def _is_weight(value: Value) -> bool:
    return value.producer is not None and value.producer.op is weight


def _weight_name(coupling: Coupling, value: Value) -> str:
    assert value.producer is not None
    name: str = value.producer.attrs["name"]
    return coupling.module.weights.aliases.get(name, name)


def _dead(coupling: Coupling, group: Group, reads: _Reads, bounds: Intervals) -> Array:
    """Returns bool[units]: those that every sum gets zero from, as far as bounds can tell."""
    dead = np.full(group.size, bool(reads.sums))
    for places in reads.sums:
        silent = np.zeros(group.size, np.bool_)
        for value, axis in places:
            per_position = _largest(value, axis, bounds)
            units = unit_of(coupling.axes(value)[axis], group.space)
            held = units >= 0
            largest = np.zeros(group.size)
            np.maximum.at(largest, units[held], per_position[held])
            silent |= largest == 0
        dead &= silent
    return dead


def _largest(value: Value, axis: int, bounds: Intervals) -> Array:
    """Returns the largest absolute value at every position of an axis."""
    size = value.shape[axis] if value.shape else 0
    assert isinstance(size, int)
    if is_constant(value):
        array = constant_of(value, 1 << 62)
        assert array is not None
        others = tuple(i for i in range(array.ndim) if i != axis)
        return np.asarray(np.abs(array.astype(np.float64)).max(others, initial=0.0))
    found = bounds.of(value)
    magnitude = np.maximum(np.abs(found.low), np.abs(found.high))
    if magnitude.ndim != value.rank:
        return np.full(size, np.inf)
    others = tuple(i for i in range(magnitude.ndim) if i != axis)
    return np.asarray(np.broadcast_to(magnitude.max(others), (size,)))


def _twins(coupling: Coupling, group: Group, reads: _Reads, alive: Array) -> dict[int, int]:
    """Returns duplicates with the unit that each equals."""
    read = {name for name, _ in reads.read_by}
    if not reads.sums or not reads.made_by or any(name in read for name, _ in reads.made_by):
        return {}
    if any(sum(_is_weight(value) for value, _ in places) != 1 for places in reads.sums):
        return {}
    rows = np.concatenate([_rows(coupling, group, source) for source in reads.made_by], 1)
    scale = float(np.abs(rows).max(initial=0.0))
    projected = rows @ np.random.default_rng(0).standard_normal(rows.shape[1])
    order = [int(i) for i in np.argsort(projected, kind="stable") if alive[i]]
    # equal rows have equal projections, up to what rounding of each element can add
    near = _EQUAL * scale * np.sqrt(rows.shape[1]) * 4
    twins: dict[int, int] = {}
    for place, unit in enumerate(order):
        for other in reversed(order[:place]):
            if projected[unit] - projected[other] > near:
                break
            first = twins.get(other, other)
            if np.abs(rows[unit] - rows[first]).max(initial=0.0) <= _EQUAL * scale:
                twins[unit] = first
                break
    return twins


def _rows(coupling: Coupling, group: Group, source: tuple[str | Value, int]) -> Array:
    """Returns what makes every unit, f64[units, elements]."""
    origin, axis = source
    if isinstance(origin, str):
        array = coupling.module.weights[origin].numpy()
        space = coupling.builder.weights[origin][axis]
    else:
        found = constant_of(origin, 1 << 62)
        assert found is not None
        array, space = found, coupling.axes(origin)[axis]
    units = unit_of(space, group.space)
    moved = np.moveaxis(array.astype(np.float64), axis, 0)
    return np.stack([moved[units == unit].reshape(-1) for unit in range(group.size)])
