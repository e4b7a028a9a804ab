"""What sizes groups may take: bounds, and multiples by kind of axis and target."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from math import ceil, gcd
from typing import Any, Literal, get_args

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.ops.conv import conv, conv_transpose
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.spaces import Form, Space, factors_of, find, leaves_of
from regraft.passes.pipeline import suggest

Array = np.ndarray[Any, Any]

AxisKind = Literal["channels", "widths", "heads", "head-size"]
KINDS: tuple[str, ...] = get_args(AxisKind)
RoundTo = int | Literal["auto"] | tuple[str, ...]
"""A multiple, those of the target, or `(kind:multiple, …)`."""


@dataclass(frozen=True, slots=True)
class Multiples:
    """Multiples by kind of axis.

    Args:
        by_kind: One for every kind.
        is_advice: Whether small groups take smaller multiples: what runs best is no condition.
    """

    by_kind: Mapping[str, int]
    is_advice: bool = False

    def __getitem__(self, kind: str) -> int:
        return self.by_kind[kind]


@dataclass(frozen=True, slots=True)
class Limits:
    """What sizes groups may take, i64[groups] each: between two bounds, in steps."""

    low: Array
    high: Array
    step: Array

    def clip(self, sizes: Array) -> Array:
        """Returns the nearest allowed sizes; the full size is always allowed."""
        rounded = np.rint(sizes / self.step).astype(np.int64) * self.step
        # a size that is no multiple stays whole when nearly all of it is wanted
        rounded = np.where(sizes > self.high - self.step / 2, self.high, rounded)
        return np.clip(rounded, self.low, self.high)


def kind_of(coupling: Coupling, group: Group) -> AxisKind:
    """Returns what kind of axis the units of a group are."""
    droppable = {other.space for other in coupling.groups}
    inner = convolved = False
    for name, axis in group.weights:
        for factors, position in occurrences(coupling.builder.weights[name][axis], group):
            if any(factor.size != 1 for factor in factors[position + 1 :]):
                return "heads"
            inner |= any(factor in droppable for factor in factors[:position])
    for value, axis in group.values:
        for user in value.users:
            convolved |= axis == 1 and user.op in (conv, conv_transpose)
    if convolved:
        return "channels"
    return "head-size" if inner else "widths"


def multiples_of(round_to: RoundTo, target: str) -> Multiples:
    """Returns the multiple for every kind of axis.

    One for all is that of innermost axes: the number of heads is free, as long as the axis that
    they are merged into is a multiple.

    Args:
        round_to: The option.
        target: Where the result runs.

    Raises:
        UsageError: For an option that is none.
    """
    if isinstance(round_to, str):
        file = resources.files("regraft.passes.pruning") / "multiples.toml"
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        return Multiples(table.get(target) or table["onnx"], is_advice=True)
    if isinstance(round_to, int):
        if round_to < 1:
            raise UsageError(f"pass `prune`, option `round-to`: {round_to} is below 1")
        return Multiples({**dict.fromkeys(KINDS, round_to), "heads": 1})
    result = dict.fromkeys(KINDS, 1)
    for item in round_to:
        kind, _, number = item.partition(":")
        if kind not in KINDS or not number.isdecimal() or int(number) < 1:
            raise UsageError(
                f"pass `prune`, option `round-to`: `{item}` is no multiple",
                hint=suggest(kind, KINDS)
                if number and kind not in KINDS
                else "write `8`, `auto`, or `[channels:8,heads:2]`",
            )
        result[kind] = int(number)
    return Multiples(result)


def limits_of(
    coupling: Coupling,
    multiples: Multiples | None = None,
    kept: frozenset[Group] = frozenset(),
    min_keep: float = 0.0,
) -> Limits:
    """Returns the sizes that groups may take.

    A group that is the innermost factor of its axes takes multiples of its kind; one of whole
    blocks (heads) takes steps that make its axes multiples; one that is smaller than its step stays
    whole. Groups in `kept` keep all, others at least the fraction `min_keep`, and one unit.

    Args:
        coupling: The groups.
        multiples: By kind of axis; None for none.
        kept: Groups that keep all.
        min_keep: A fraction.
    """
    multiples = multiples or Multiples(dict.fromkeys(KINDS, 1))
    low, high, step = [], [], []
    for group in coupling.groups:
        each = _step(coupling, group, multiples)
        step.append(each)
        high.append(group.size)
        least = max(1, ceil(group.size * min_keep - 1e-9))
        floor = min(-(-least // each) * each, group.size)
        low.append(group.size if group in kept else floor)
    return Limits(np.array(low), np.array(high), np.array(step))


def _step(coupling: Coupling, group: Group, multiples: Multiples) -> int:
    kind = kind_of(coupling, group)
    step = multiples[kind]
    if kind == "heads":
        # the axis into which heads are merged is a width
        merged = multiples["widths"]
        for name, axis in group.weights:
            for factors, position in occurrences(coupling.builder.weights[name][axis], group):
                inner = 1
                for factor in factors[position + 1 :]:
                    inner *= factor.size if isinstance(factor.size, int) else 1
                step = _common(step, merged // gcd(merged, inner))
    while multiples.is_advice and step > 1 and 2 * step > group.size:
        step //= 2
    return step


def _common(a: int, b: int) -> int:
    return a * b // gcd(a, b)


def occurrences(space: Space, group: Group) -> Iterator[tuple[list[Space], int]]:
    """Yields the products that hold a group's leaf, with its place among their factors."""
    space = find(space)
    if space.form is Form.SUM:
        for part in space.parts:
            yield from occurrences(part, group)
        return
    factors = factors_of(space)
    for i, factor in enumerate(factors):
        if factor is group.space:
            yield factors, i
        elif factor.form is Form.SUM and group.space in leaves_of(factor):
            yield from occurrences(factor, group)
