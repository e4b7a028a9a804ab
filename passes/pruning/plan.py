"""A pruning plan: kept positions of every group, and what becomes of every axis that they touch.

It is data that prints as JSON, and applies to every module of the same architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import weight
from regraft.ir.dims import Dim, DimLike
from regraft.ir.errors import InputError
from regraft.ir.graph import Value
from regraft.passes.analysis.coupling.groups import (
    Coupling,
    Group,
    describe,
    new_size,
    places_of,
    touched,
)
from regraft.passes.analysis.coupling.spaces import Space

Array = np.ndarray[Any, Any]
Choice = Mapping[Group, Array]
"""Kept positions of groups that lose some: i64[K], or i64[blocks, K]."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """What is kept of one group.

    Args:
        name: Its name in the coupling, `g12`.
        kind: Hash of what uses it, to recognize it in another checkpoint.
        size: Positions before.
        kept: Kept positions, one row per block that chooses its own.
    """

    name: str
    kind: str
    size: int
    kept: tuple[tuple[int, ...], ...]

    @property
    def new_size(self) -> int:
        """Positions after, in each block."""
        return len(self.kept[0])


@dataclass(frozen=True, slots=True)
class PlannedAxis:
    """What becomes of one axis.

    Args:
        axis: Which axis.
        size: Its size before.
        new_size: Its size after.
        form: Its groups and fixed factors, `(g3 64)`: kept positions follow from those of groups.
    """

    axis: int
    size: DimLike
    new_size: DimLike
    form: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A pruning plan.

    Args:
        groups: Groups that lose positions.
        weights: Touched axes of every touched weight, by name.
        values: Touched axes of every other touched value, by name.
    """

    groups: tuple[PlannedGroup, ...]
    weights: Mapping[str, tuple[PlannedAxis, ...]]
    values: Mapping[str, tuple[PlannedAxis, ...]]

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as a JSON document; kept positions as ranges, `0-3,7`."""
        return {
            "version": _VERSION,
            "groups": [
                {
                    "name": group.name,
                    "kind": group.kind,
                    "size": group.size,
                    "new_size": group.new_size,
                    "kept": [format_ranges(row) for row in group.kept],
                }
                for group in self.groups
            ],
            "weights": {name: _axes_json(axes) for name, axes in self.weights.items()},
            "values": {name: _axes_json(axes) for name, axes in self.values.items()},
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Plan:
        """Reads what `to_json` wrote.

        Raises:
            InputError: When it is no plan of this version.
        """
        try:
            if document["version"] != _VERSION:
                raise InputError(f"a pruning plan of version {document['version']!r}")
            groups = tuple(
                PlannedGroup(
                    item["name"], item["kind"], item["size"],
                    tuple(tuple(parse_ranges(row)) for row in item["kept"]),
                )
                for item in document["groups"]
            )  # fmt: skip
            weights = {name: _read_axes(axes) for name, axes in document["weights"].items()}
            values = {name: _read_axes(axes) for name, axes in document["values"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"not a pruning plan: {type(error).__name__}: {error}",
                hint="give the `plan` that an earlier `prune` recorded",
            ) from error
        return Plan(groups, weights, values)


def _axes_json(axes: Sequence[PlannedAxis]) -> list[dict[str, Any]]:
    return [
        {
            "axis": item.axis,
            "size": _size_json(item.size),
            "new_size": _size_json(item.new_size),
            "of": item.form,
        }
        for item in axes
    ]


def _size_json(size: DimLike) -> int | str:
    return str(size) if isinstance(size, Dim) else size


def _read_axes(axes: Sequence[Mapping[str, Any]]) -> tuple[PlannedAxis, ...]:
    return tuple(
        PlannedAxis(item["axis"], item["size"], item["new_size"], item["of"]) for item in axes
    )


def format_ranges(positions: Sequence[int]) -> str:
    """Returns ascending positions as `0-3,7`."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_ranges(text: str) -> Iterator[int]:
    """Yields the positions of `0-3,7`."""
    for run in text.split(","):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def make_plan(coupling: Coupling, choice: Choice) -> Plan:
    """Returns the plan that keeps the chosen positions; groups not chosen keep all."""
    groups = []
    sizes: dict[Space, DimLike] = {}
    for group in coupling.groups:
        kept = choice.get(group)
        if kept is None or kept.shape[-1] == group.size:
            continue
        rows = np.atleast_2d(kept)
        sizes[group.space] = rows.shape[1]
        planned = tuple(tuple(int(i) for i in row) for row in rows)
        groups.append(PlannedGroup(group.name, group.kind, group.size, planned))
    # groups that keep all are plain numbers in the forms
    names = {g.space: g.name for g in coupling.groups if g.space in sizes}
    weights = {
        name: axes
        for name, spaces in coupling.builder.weights.items()
        if (axes := _planned(spaces, sizes, names))
    }
    values = {
        name: axes
        for name, value in places_of(coupling)
        if not _is_weight(value) and (axes := _planned(coupling.axes(value), sizes, names))
    }
    return Plan(tuple(groups), weights, values)


def _is_weight(value: Value) -> bool:
    return value.producer is not None and value.producer.op is weight


def _planned(
    spaces: Sequence[Space], sizes: dict[Space, DimLike], names: dict[Space, str]
) -> tuple[PlannedAxis, ...]:
    return tuple(
        PlannedAxis(axis, space.size, new_size(space, sizes), describe(space, names))
        for axis, space in enumerate(spaces)
        if touched(space, sizes)
    )


def choice_of(plan: Plan, coupling: Coupling) -> dict[Group, Array]:
    """Returns the kept positions that a plan states, for the groups of a coupling.

    Raises:
        InputError: When the coupling has another structure than the plan was made for.
    """
    groups = {group.name: group for group in coupling.groups}
    choice: dict[Group, Array] = {}
    for planned in plan.groups:
        group = groups.get(planned.name)
        if group is None or group.kind != planned.kind or group.size != planned.size:
            raise InputError(
                f"the pruning plan does not fit: group `{planned.name}` of {planned.size} "
                + ("does not exist" if group is None else f"has {group.size} or other uses"),
                hint="a plan applies to modules of the architecture it was made for",
            )
        rows = np.array(planned.kept, np.int64)
        if rows.shape[0] not in (1, group.num_blocks) or rows.max(initial=0) >= group.size:
            raise InputError(f"the pruning plan does not fit: positions of `{planned.name}`")
        choice[group] = rows if group.num_blocks > 1 else rows[0]
    again = make_plan(coupling, choice)
    if {n: len(a) for n, a in again.weights.items()} != {
        n: len(a) for n, a in plan.weights.items()
    }:
        missing = sorted(set(again.weights) ^ set(plan.weights))
        raise InputError(
            f"the pruning plan does not fit: it does not touch the same weights, {missing[:3]}",
            hint="a plan applies to modules of the architecture it was made for",
        )
    return choice
