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


def multiples_of(round_to: RoundTo, target: str) -> Mapping[str, int]:
    """Returns the multiple for every kind of axis.

    Args:
        round_to: The option.
        target: Where the result runs.

    Raises:
        UsageError: For an option that is none.
    """
    if isinstance(round_to, str):
        file = resources.files("regraft.passes.pruning") / "multiples.toml"
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        found: Mapping[str, int] = table.get(target) or table["onnx"]
        return found
    if isinstance(round_to, int):
        if round_to < 1:
            raise UsageError(f"pass `prune`, option `round-to`: {round_to} is below 1")
        return dict.fromkeys(KINDS, round_to)
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
    return result


def limits_of(
    coupling: Coupling,
    multiples: Mapping[str, int] | int = 1,
    kept: frozenset[Group] = frozenset(),
    min_keep: float = 0.0,
) -> Limits:
    """Returns the sizes that groups may take.

    A group that is the innermost factor of its axes takes multiples of its kind; one of whole
    blocks (heads) takes steps that make its axes multiples. Groups in `kept` keep all, others at
    least the fraction `min_keep`, and one unit.

    Args:
        coupling: The groups.
        multiples: By kind of axis, or one for all.
        kept: Groups that keep all.
        min_keep: A fraction.
    """
    if isinstance(multiples, int):
        multiples = dict.fromkeys(KINDS, multiples)
    low, high, step = [], [], []
    for group in coupling.groups:
        each = _step(coupling, group, multiples)
        step.append(each)
        high.append(group.size)
        least = max(1, ceil(group.size * min_keep - 1e-9))
        floor = min(-(-least // each) * each, group.size)
        low.append(group.size if group in kept else floor)
    return Limits(np.array(low), np.array(high), np.array(step))


def _step(coupling: Coupling, group: Group, multiples: Mapping[str, int]) -> int:
    kind = kind_of(coupling, group)
    wanted = multiples[kind]
    if kind == "heads":
        # the axis into which heads are merged is a width
        merged = multiples["widths"]
        for name, axis in group.weights:
            for factors, position in occurrences(coupling.builder.weights[name][axis], group):
                inner = 1
                for factor in factors[position + 1 :]:
                    inner *= factor.size if isinstance(factor.size, int) else 1
                wanted = max(wanted, _common(multiples[kind], merged // gcd(merged, inner)))
    # where heads cannot make the merged axis a multiple, their own count still can be one
    for each in (wanted, multiples[kind]):
        if 2 * each <= group.size:
            return each
    return 1


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
