"""Coupled groups: every axis that a row of positions stands in, and why others are pinned."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from regraft.ir.constants import weight
from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.reduce import reduced_axes
from regraft.passes.analysis.coupling.builder import Builder
from regraft.passes.analysis.coupling.counted import COUNTED
from regraft.passes.analysis.coupling.spaces import Form, Pin, Space, factors_of, find, leaves_of


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Positions that go together in every slot; one position is one unit.

    Args:
        idx: Number of the group, in order of first appearance.
        space: Its leaf.
        size: Positions in each block.
        num_blocks: Blocks that may keep positions of their own, in equal numbers; mostly 1.
        weights: (name, axis) of every weight axis it stands in.
        values: (value, axis) of every other axis, in graph order.
        kind: Hash of what uses it and how; groups of repeated layers share it.
        counted: Whether a normalization counts its positions.
    """

    idx: int
    space: Space
    size: int
    num_blocks: int
    weights: tuple[tuple[str, int], ...]
    values: tuple[tuple[Value, int], ...]
    kind: str
    counted: bool

    @property
    def name(self) -> str:
        """`g12`."""
        return f"g{self.idx}"


@dataclass(frozen=True, slots=True, eq=False)
class PinnedSpace:
    """Positions that must all stay, with the reason; only those that weights hold are listed."""

    space: Space
    size: int
    why: Pin
    weights: tuple[tuple[str, int], ...]


class Coupling:
    """The coupling of a module's axes.

    Attributes:
        module: The module, as it was when it was looked at.
        groups: What may be pruned.
        pinned: What may not, and why.
        builder: Spaces of all axes.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.builder = Builder(module)
        self.builder.build()
        self.groups, self.pinned = self._collect()

    def axes(self, value: Value) -> tuple[Space, ...]:
        """Returns one space per axis of a value."""
        return self.builder.axes.get(value, ())

    @cached_property
    def isomorphic(self) -> dict[str, list[Group]]:
        """Groups by kind: those of repeated layers stand together."""
        kinds: dict[str, list[Group]] = {}
        for group in self.groups:
            kinds.setdefault(group.kind, []).append(group)
        return kinds

    # -- collection -------------------------------------------------------------------------

    def _collect(self) -> tuple[tuple[Group, ...], tuple[PinnedSpace, ...]]:
        values: dict[Space, list[tuple[Value, int]]] = {}
        read: dict[Space, list[tuple[Value, int]]] = {}
        weights: dict[Space, list[tuple[str, int]]] = {}
        for value, spaces in self.builder.axes.items():
            is_weight = value.producer is not None and value.producer.op is weight
            held = read if is_weight else values
            for axis, space in enumerate(spaces):
                for leaf in dict.fromkeys(leaves_of(space)):
                    held.setdefault(leaf, []).append((value, axis))
        for name, spaces in self.builder.weights.items():
            for axis, space in enumerate(spaces):
                for leaf in dict.fromkeys(leaves_of(space)):
                    weights.setdefault(leaf, []).append((name, axis))
        kinds = _Kinds(self.builder)
        groups: list[Group] = []
        pinned: list[PinnedSpace] = []
        for leaf, slots in weights.items():
            if not isinstance(leaf.size, int) or leaf.size < 2:
                continue
            if leaf.pin is not None:
                pinned.append(PinnedSpace(leaf, leaf.size, leaf.pin, tuple(slots)))
                continue
            others = values.get(leaf, [])
            if not any(self._is_float(name) for name, _ in slots):
                continue
            if not others and len(slots) < 2:  # nothing flows through it
                continue
            kind, counted = kinds.of(leaf, others or read.get(leaf, []))
            groups.append(
                Group(
                    len(groups), leaf, leaf.size, _num_blocks(leaf), tuple(slots), tuple(others),
                    kind, counted,
                )
            )  # fmt: skip
        return tuple(groups), tuple(pinned)

    def _is_float(self, name: str) -> bool:
        return self.module.weights[name].dtype.is_float


def _num_blocks(leaf: Space) -> int:
    if leaf.outer is None:
        return 1
    total = product(factor.size for factor in factors_of(leaf.outer))
    if not isinstance(total, int):
        leaf.outer = None
        return 1
    return total


class _Kinds:
    """Describes the places of a leaf, so that leaves of repeated layers look alike."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def of(self, leaf: Space, values: list[tuple[Value, int]]) -> tuple[str, bool]:
        places: Counter[str] = Counter()
        counted = False
        for value, axis in values:
            producer = value.producer
            if producer is not None:
                places[f"{producer.op.name}>{value.index}.{axis}/{value.rank}"] += 1
            for user, idx in value.uses:
                if isinstance(user, Node):
                    places[f"{user.op.name}<{idx}.{axis}/{value.rank}"] += 1
                    counted |= idx == 0 and _counts(self.builder, user, leaf, axis)
        text = f"{leaf.size} {sorted(places.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:12], counted


def _counts(builder: Builder, user: Node, leaf: Space, axis: int) -> bool:
    from_op = user.op.name
    if from_op == "group_norm":
        return axis == 1 and leaf not in factors_of(builder.stated[user]["groups"][0])
    if from_op in ("layer_norm", "rms_norm"):
        rank = user.output.rank or 0
        first: int = user.attrs["axis"]
        return axis >= (first if first >= 0 else first + rank)
    return user.op in COUNTED and axis in (reduced_axes(user) or ())


# -- what is kept --------------------------------------------------------------------------------


def touched(space: Space, sizes: Mapping[Space, DimLike]) -> bool:
    """Returns whether a space loses positions under new sizes of leaves."""
    return any(leaf in sizes for leaf in leaves_of(space))


def new_size(space: Space, sizes: Mapping[Space, DimLike]) -> DimLike:
    """Returns the size of a space under new sizes of leaves."""
    space = find(space)
    if not space.parts:
        return sizes.get(space, space.size)
    if space.form is Form.PRODUCT:
        return product(new_size(part, sizes) for part in space.parts)
    total: DimLike = 0
    for part in space.parts:
        total = new_size(part, sizes) + total
    return total


def describe(space: Space, names: dict[Space, str]) -> str:
    """Returns the space as text: `(g3 64)`, `(g1 + g2)`.

    `g4*` keeps other positions in every block; `?` is a size that only run time knows.
    """
    space = find(space)
    if not space.parts:
        name = names.get(space)
        if name is None:
            return str(space.size) if isinstance(space.size, int) else "?"
        return name if space.outer is None else f"{name}*"
    sign = " " if space.form is Form.PRODUCT else " + "
    return f"({sign.join(describe(part, names) for part in space.parts)})"


def places_of(coupling: Coupling) -> Iterator[tuple[str, Value]]:
    """Yields every value of the graph with a unique name, anonymous ones by their operator."""
    seen: Counter[str] = Counter()
    for value in coupling.builder.axes:
        name = value.name
        if name is None:
            name = value.producer.op.name if value.producer is not None else "value"
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), value
