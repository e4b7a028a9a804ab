"""Moving a factor per channel from where a value is made to where it is read, exactly.

`plan_factor` multiplies one value by positive numbers per channel and follows what that asks of all
other values and constants, by the law of every operator (`laws`) and the axes that are coupled,
until constants take it: the weight that makes the value is multiplied, those that read it are
divided. Nothing is changed until the whole plan holds; `apply_plan` then writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.axes import Role as AxisRole
from regraft.ir.axis_binding import bind_node, rule_of
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.ir.steps import Literal, Mul
from regraft.ir.weights import Role
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.analysis.coupling.builder import name_of
from regraft.passes.analysis.coupling.spaces import Space
from regraft.passes.equivalence.factors import Factor, factors_along, placed, places_of, spread
from regraft.passes.equivalence.laws import (
    NEEDS_REWRITE,
    SIGNED,
    Choice,
    Power,
    Sides,
    View,
    answer,
)

Array = np.ndarray[Any, Any]

_MAX_NODES = 2000
"""Nodes that one factor may reach: a walk that takes in the whole model folds nothing."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a factor cannot be moved.

    Args:
        node: Name of the operator in the way.
        reason: One sentence.
    """

    node: str
    reason: str


@dataclass(slots=True, eq=False)
class _State:
    powers: dict[Value, int] = field(default_factory=dict)
    edits: dict[tuple[Node, int], Power] = field(default_factory=dict)
    pending: list[Node] = field(default_factory=list)
    seen: dict[Node, None] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(dict(self.powers), dict(self.edits), list(self.pending), dict(self.seen))


@dataclass(frozen=True, slots=True, eq=False)
class ScalePlan:
    """What one factor changes.

    Args:
        factor: The factor.
        powers: Values that are multiplied by a power of it.
        edits: Constants as operands, by the power of the factor that they take.
        nodes: Every node whose law was looked at.
    """

    factor: Factor
    powers: dict[Value, int]
    edits: dict[tuple[Node, int], Power]
    nodes: tuple[Node, ...]


def plan_factor(
    coupling: Coupling, value: Value, axis: int, numbers: Array
) -> list[ScalePlan] | Refused:
    """Returns how a value is multiplied by numbers per position of an axis, all else equal.

    Args:
        coupling: Of the module.
        value: The value, no constant.
        axis: Its axis.
        numbers: f64[size], not 0; negative ones pass through linear operators only.
    """
    where = value.name or "a value"
    spaces = coupling.axes(value)
    if not spaces:
        return Refused(where, "its shape is not known")
    if not np.isfinite(numbers).all() or not numbers.all():
        raise ValueError("a factor is finite and not 0")
    factors = factors_along(spaces[axis], numbers)
    if isinstance(factors, str):
        return Refused(where, factors)
    plans: list[ScalePlan] = []
    for factor in factors:
        solved = _Solver(coupling, factor).start(value)
        if isinstance(solved, Refused):
            return solved
        if (factor.numbers < 0).any():
            for node in solved.seen:
                if node.op not in SIGNED:
                    return Refused(name_of(node), f"{node.op.name} does not commute with a sign")
        plans.append(ScalePlan(factor, solved.powers, solved.edits, tuple(solved.seen)))
    return plans


class _Solver:
    def __init__(self, coupling: Coupling, factor: Factor) -> None:
        self.coupling = coupling
        self.factor = factor
        self.is_tied = all(leaf.pin is None for leaf in factor.leaves)
        self.held: dict[Value, bool] = {}

    def start(self, value: Value) -> _State | Refused:
        """Returns powers of all values and constants such that `value` has power 1."""
        state = _State()
        refused = self._assign(state, value, 1) or self._solve(state)
        if isinstance(refused, Refused):
            return refused
        return self._settled(state)

    def _settled(self, state: _State) -> _State | Refused:
        """Refuses what reads a constant for two purposes."""
        for (node, slot), power in state.edits.items():
            value = node.inputs[slot]
            if value is None:
                raise AssertionError("an edited operand is a constant")
            others = [
                use
                for use in _uses_of(self.coupling.module, value)
                if state.edits.get(use, 0) != power
            ]
            if others and _is_parameter(self.coupling.module, value):
                user = others[0][0]
                return Refused(
                    value.name or name_of(node),
                    f"the weight is tied: `{name_of(user)}` reads it too and takes no factor",
                )
        return state

    def _holds(self, value: Value) -> bool:
        found = self.held.get(value)
        if found is None:
            found = spread(self.factor, self.coupling.axes(value)) is not None
            self.held[value] = found
        return found

    def _is_square(self, value: Value) -> bool:
        """Whether a value has a leaf of the factor on two axes, and all the others."""
        places = places_of(self.factor, self.coupling.axes(value))
        return all(places) and any(len(axes) > 1 for axes in places)

    def _assign(self, state: _State, value: Value, power: int) -> Refused | None:
        state.powers[value] = power
        name = value.name or "a value"
        if value.producer is None:
            return Refused(name, "it is an input of the graph")
        if value.is_output:
            return Refused(name, "it is an output of the graph")
        state.pending += [value.producer, *value.users]
        return None

    def _solve(self, state: _State) -> Refused | None:
        while state.pending:
            node = state.pending.pop()
            state.seen[node] = None
            if len(state.seen) > _MAX_NODES:
                return Refused(name_of(node), "the factor would reach the whole model")
            found = answer(self._view(state, node))
            if isinstance(found, str):
                return Refused(name_of(node), f"{node.op.name} {found}")
            if not found:
                continue
            if len(found) == 1:
                refused = self._apply(state, node, found[0])
                if refused is not None:
                    return refused
                continue
            return self._try(state, node, found)
        return None

    def _try(self, state: _State, node: Node, choices: Iterable[Choice]) -> Refused | None:
        """Takes the first choice that leads to an end."""
        first: Refused | None = None
        for choice in choices:
            attempt = state.copy()
            refused = self._apply(attempt, node, choice) or self._solve(attempt)
            if refused is None:
                state.powers, state.edits = attempt.powers, attempt.edits
                state.pending, state.seen = [], attempt.seen
                return None
            first = first or refused
        return first

    def _apply(self, state: _State, node: Node, choice: Choice) -> Refused | None:
        for slot, power in choice:
            value = node.inputs[slot] if slot >= 0 else node.outputs[-1 - slot]
            if value is None:
                raise AssertionError("laws name operands that are given")
            if isinstance(power, Sides):
                state.edits[node, slot] = power
                continue
            if not is_constant(value):
                refused = self._assign(state, value, power)
                if refused is not None:
                    return refused
                continue
            if not self._holds(value):
                return Refused(name_of(node), f"{node.op.name}: a constant has no such channels")
            state.edits[node, slot] = power
            state.pending.append(node)
        return None

    def _view(self, state: _State, node: Node) -> View:
        def value_at(slot: int) -> Value | None:
            return node.inputs[slot] if slot >= 0 else node.outputs[-1 - slot]

        def power(slot: int) -> int:
            value = value_at(slot)
            if slot >= 0 and is_constant(value):
                edit = state.edits.get((node, slot), 0)
                return edit if isinstance(edit, int) else 0
            return 0 if value is None else state.powers.get(value, 0)

        def decided(slot: int) -> bool:
            value = value_at(slot)
            if slot >= 0 and is_constant(value):
                return (node, slot) in state.edits
            return value in state.powers

        def holds(slot: int) -> bool:
            value = value_at(slot)
            return value is not None and self._holds(value)

        def sides(slot: int) -> Sides | None:
            value = value_at(slot)
            if value is None or not self._is_square(value):
                return None
            edit = state.edits.get((node, slot))
            return edit if isinstance(edit, Sides) else Sides(0, 0)

        return View(node, power, decided, holds, sides, self.is_tied)


def _uses_of(module: Module, value: Value) -> list[tuple[Node, int]]:
    """Returns every use of a constant, also by other nodes that read the same weight."""
    maker = value.producer
    makers = [maker]
    if maker is not None and maker.op is weight:
        name = module.weights.resolve(maker.attrs["name"])
        makers = [
            node
            for node in module.graph.walk()
            if node.op is weight and module.weights.resolve(node.attrs["name"]) == name
        ]
    uses: list[tuple[Node, int]] = []
    for node in makers:
        if node is not None:
            uses += [(user, idx) for user, idx in node.output.uses if isinstance(user, Node)]
    return uses


def _is_parameter(module: Module, value: Value) -> bool:
    maker = value.producer
    if maker is None or maker.op is not weight:
        return False
    return module.weights.role(maker.attrs["name"]) is Role.PARAM


# -- writing ------------------------------------------------------------------------------------


def apply_plan(coupling: Coupling, plan: ScalePlan) -> int:
    """Writes a plan into the module; returns the number of constants that changed."""
    written: set[str] = set()
    count = 0
    for (node, slot), power in plan.edits.items():
        value = node.inputs[slot]
        if value is None or node.graph is None:
            raise AssertionError("an edited operand is a constant")
        factor = np.ones((), np.float64)
        for spaces, exponent in sides_of(coupling, node, slot, power):
            factor = factor * placed(plan.factor, spaces) ** exponent
        maker = value.producer
        uses = _uses_of(coupling.module, value)
        shared = [use for use in uses if plan.edits.get(use) != power]
        if maker is not None and maker.op is weight and not shared:
            name = coupling.module.weights.resolve(maker.attrs["name"])
            if name not in written:
                written.add(name)
                store = coupling.module.weights
                tree = derive(name, store[name])
                scales = Literal.of(factor.astype(np.float32))
                store.set(name, DerivedWeight(Mul(tree, scales)))
                count += 1
            continue
        array = constant_of(value, 1 << 62)
        if array is None:
            raise AssertionError("an edited operand is a constant")
        b = Builder(node.graph, node, node.loc)
        scaled = b.constant((array * factor).astype(array.dtype), name=f"{value.name}.scaled")
        coupling.builder.axes[scaled] = coupling.axes(value)
        node.set_operand(slot, scaled)
        count += 1
    for node in plan.nodes:
        if node.op in NEEDS_REWRITE and plan.powers.get(node.output):
            _bounded(coupling, plan, node)
    for value in plan.powers:
        if value.name and not value.name.endswith(".scaled"):
            value.name = f"{value.name}.scaled"
    return count


def sides_of(
    coupling: Coupling, node: Node, slot: int, power: Power
) -> Iterator[tuple[tuple[Space, ...], int]]:
    """Yields the spaces of a constant as they take one power: of square weights, side by side.

    Args:
        coupling: Of the module.
        node: What reads the constant.
        slot: Its operand.
        power: As a plan has it.
    """
    value = node.inputs[slot]
    spaces = () if value is None else coupling.axes(value)
    if isinstance(power, int):
        yield spaces, power
        return
    rule = rule_of(node)
    axes = None if rule is None else bind_node(node, rule).operands[slot]
    if axes is None:
        raise AssertionError("products state an axis rule")
    summed = [any(factor.role is AxisRole.SUM for factor in axis) for axis in axes]
    for is_read, exponent in ((True, power.read), (False, power.made)):
        if exponent:
            yield (
                tuple(
                    space if read is is_read else Space(space.size)
                    for space, read in zip(spaces, summed, strict=True)
                ),
                exponent,
            )


def _bounded(coupling: Coupling, plan: ScalePlan, node: Node) -> None:
    """Replaces a clip by bounds per channel: clip(f x) is f clip(x) where the bounds take f too."""
    factor = placed(plan.factor, coupling.axes(node.output)) ** plan.powers[node.output]
    x, graph = node.inputs[0], node.graph
    low, high = node.static("min"), node.static("max")
    if x is None or graph is None or (low in (0, None) and high in (None, np.inf)):
        return
    b = Builder(graph, node, node.loc)
    result = x
    for bound, op in ((low, arithmetic.max_), (high, arithmetic.min_)):
        if isinstance(bound, int | float) and np.isfinite(bound):
            limits = (factor * bound).astype(np.float32)
            result = b.op(op, result, b.constant(limits if bound else np.zeros((), np.float32)))
            coupling.builder.axes[result] = coupling.axes(node.output)
    graph.replace(node, [result])
