"""Gates and thresholds that are learned on samples while the weights stay as they are.

A gate multiplies what a unit carries into the weights that read it, so that its gradient is that of
these weights, times them. The loss is the distance of the outputs to those of the module as it is,
and a term for the budget, `strength (cost / budget - 1)²`.

- `learn_gates`: a gate `sigmoid(θ)` per unit; the units with the largest stay. What was learned on
  one task may start another's (`Gates.write`, `Gates.read`), which then needs less data (Lagunas et
  al., 2021; Transfer Learning for Structured Pruning under Limited Task Data).
- `learn_thresholds`: one threshold per group, units whose importance lies below it are shut; the
  step is hard forward, and has the slope of a sigmoid backward (LAPP, 2023). Says how many units
  each group keeps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import weight
from regraft.ir.errors import InputError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.ir.types import TensorType
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import leaves_of
from regraft.passes.protocol import Context, GradientSource, Samples
from regraft.passes.pruning.cost import Cost
from regraft.passes.pruning.criteria import Scores
from regraft.passes.pruning.energy import sums_of
from regraft.passes.pruning.measured import samples_of

Array = np.ndarray[Any, Any]

_RATE = 0.3
_STRENGTH = 0.5
"""Of the budget's term, in units of the loss of shutting everything."""

_STRENGTH_OF_THRESHOLDS = 4.0
"""The same where a threshold has to say how many units stay, not only which."""

_TEMPERATURE = 0.25
"""Width of the sigmoid whose slope thresholds see, in units of the mean importance."""

_OPEN = 2.0
"""θ of a gate at first: 0.88 open, where the slope is not yet flat."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What learning needs besides the groups.

    Args:
        cost: Of sizes of groups.
        budget: What is to be reached.
        steps: Updates.
    """

    cost: Cost
    budget: float
    steps: int


@dataclass(slots=True)
class Gates:
    """θ of every unit, by group: f64[blocks * units]."""

    values: dict[Group, Array] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes them by name and kind of group."""
        rows = [
            {"group": group.name, "kind": group.kind, "theta": theta.tolist()}
            for group, theta in self.values.items()
        ]
        path.write_text(json.dumps(rows), encoding="utf-8")

    @staticmethod
    def read(path: Path, coupling: Coupling) -> Gates:
        """Reads gates for the groups of a coupling.

        Raises:
            InputError: When they are those of another architecture.
        """
        rows = {row["group"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        found = Gates()
        for group in coupling.groups:
            row = rows.get(group.name)
            if row is None or row["kind"] != group.kind:
                raise InputError(
                    f"`{path}` has no gates for group `{group.name}`",
                    hint="gates are transferred between checkpoints of one architecture",
                )
            found.values[group] = np.asarray(row["theta"])
        return found


def learn_gates(
    coupling: Coupling, ctx: Context, learning: Learning, first: Gates | None = None
) -> Gates:
    """Returns gates learned on the samples.

    Args:
        coupling: The groups.
        ctx: Gives samples, values and gradients.
        learning: Budget and length.
        first: Where to start; default: all alike.

    Raises:
        UsageError: Without samples, values or gradients.
    """
    sizes = {group: group.num_blocks * group.size for group in coupling.groups}
    given = {} if first is None else first.values
    theta = {group: given.get(group, np.full(size, _OPEN)) for group, size in sizes.items()}
    gated = _Gated(coupling, ctx, learning)

    def slopes(at: Mapping[Group, Array]) -> dict[Group, Array]:
        gates = {group: _sigmoid(each) for group, each in at.items()}
        found = gated.slopes(gates)
        return {group: found[group] * z * (1 - z) for group, z in gates.items()}

    return Gates(_descend(theta, slopes, learning.steps))


def learn_thresholds(
    coupling: Coupling, ctx: Context, learning: Learning, scores: Scores
) -> dict[Group, float]:
    """Returns the threshold of every group, in units of its mean score.

    Args:
        coupling: The groups.
        ctx: Gives samples, values and gradients.
        learning: Budget and length.
        scores: Importance of units.
    """
    importance = {
        group: scores[group].reshape(-1) / max(float(scores[group].mean()), 1e-30)
        for group in coupling.groups
    }
    gated = _Gated(coupling, ctx, learning, _STRENGTH_OF_THRESHOLDS)

    def slopes(at: Mapping[Group, Array]) -> dict[Group, Array]:
        gates = {g: (importance[g] > t).astype(np.float64) for g, t in at.items()}
        found = gated.slopes(gates)
        result = {}
        for group, threshold in at.items():
            soft = _sigmoid((importance[group] - threshold) / _TEMPERATURE)
            result[group] = -(found[group] * soft * (1 - soft) / _TEMPERATURE).sum(keepdims=True)
        return result

    # below the least important unit in reach of the slope: everything is open
    start = {g: np.array([max(float(each.min()) - 1e-9, -1.0)]) for g, each in importance.items()}
    found = _descend(start, slopes, learning.steps, rate=_RATE / 3)
    return {group: float(value[0]) for group, value in found.items()}


def kept_above(scores: Scores, thresholds: Mapping[Group, float]) -> dict[Group, int]:
    """Returns how many units of a block lie above the threshold of their group, at least one."""
    found = {}
    for group, threshold in thresholds.items():
        limit = threshold * max(float(scores[group].mean()), 1e-30)
        above = (scores[group] > limit).sum(-1).mean()
        found[group] = max(round(float(above)), 1)
    return found


class _Gated:
    """Slopes of the loss and the budget's term by the gates of units."""

    def __init__(
        self, coupling: Coupling, ctx: Context, learning: Learning, strength: float = _STRENGTH
    ) -> None:
        if ctx.gradients is None or ctx.activations is None:
            raise UsageError(
                "pass `prune`: gates and thresholds are learned by gradients, and there is no "
                "source",
                hint="install PyTorch (`pip install regraft[torch]`), or use criterion=energy",
            )
        self.coupling = coupling
        self.learning = learning
        self.strength = strength
        self.source: GradientSource = ctx.gradients
        self.places = _read_weights(coupling)
        self.module, self.samples = _to_targets(coupling.module, ctx, samples_of(ctx))
        store = coupling.module.weights
        self.arrays = {name: store[name].numpy().astype(np.float64) for name in self.places}
        self.scale = max(self._loss_of_zero(), 1e-30)

    def slopes(self, gates: Mapping[Group, Array]) -> dict[Group, Array]:
        """Returns the slope by every gate, in units of what is lost by shutting all."""
        gradients = self._gradients(gates)
        result = {group: np.zeros(gate.shape) for group, gate in gates.items()}
        for name, places in self.places.items():
            for axis, group in places:
                units = self._units(name, axis, group)
                others = tuple(i for i in range(self.arrays[name].ndim) if i != axis)
                rest = self._factors(name, gates, without=axis)
                terms = (gradients[name] * self.arrays[name] * rest).sum(others)
                held, count = units >= 0, len(gates[group])
                summed = np.bincount(units[held], terms[held], minlength=count)
                result[group] += summed / self.scale
        sizes = np.array([gates[g].sum() / g.num_blocks for g in self.coupling.groups])
        over = self.learning.cost.total(sizes) / self.learning.budget - 1
        prices = self.learning.cost.gradient(sizes) / self.learning.budget
        for group, price in zip(self.coupling.groups, prices, strict=True):
            result[group] += 2 * self.strength * over * price / group.num_blocks
        return result

    def _units(self, name: str, axis: int, group: Group) -> Array:
        return unit_of(self.coupling.builder.weights[name][axis], group.space)

    def _factors(self, name: str, gates: Mapping[Group, Array], without: int = -1) -> Array:
        """Returns what every element of a weight is multiplied by, but for groups on one axis."""
        factor = np.ones(self.arrays[name].shape)
        for axis, group in self.places[name]:
            if axis == without:
                continue
            units = self._units(name, axis, group)
            own = np.where(units >= 0, gates[group][units], 1.0)
            factor = factor * own.reshape([-1 if i == axis else 1 for i in range(factor.ndim)])
        return factor

    def _gradients(self, gates: Mapping[Group, Array]) -> dict[str, Array]:
        moved = self.module.clone()
        for name, array in self.arrays.items():
            dtype = moved.weights[name].dtype.numpy
            moved.weights.set(name, ArrayWeight((array * self._factors(name, gates)).astype(dtype)))
        total: dict[str, Array] = {}
        for found in self.source.gradients(moved, self.samples, list(self.arrays)):
            for name, array in found.items():
                total[name] = total.get(name, 0.0) + array.astype(np.float64) / len(self.samples)
        return total

    def _loss_of_zero(self) -> float:
        """Returns half the mean square of the targets: the loss of outputs that are zero."""
        squares = [
            np.square(np.asarray(array, np.float64)).mean() / 2
            for sample in self.samples
            for name, array in sample.items()
            if name.startswith(_TARGET)
        ]
        return float(np.mean(squares)) if squares else 1.0


def _read_weights(coupling: Coupling) -> dict[str, list[tuple[int, Group]]]:
    """Returns the weights that products multiply units by, with the axis and the group."""
    groups = {group.space: group for group in coupling.groups}
    found: dict[str, list[tuple[int, Group]]] = {}
    for _, label, places in sums_of(coupling):
        for value, axis in places:
            maker = value.producer
            if maker is None or maker.op is not weight:
                continue
            name = coupling.module.weights.resolve(maker.attrs["name"])
            for leaf in dict.fromkeys(leaves_of(label)):
                place = (axis, groups[leaf]) if leaf in groups else None
                if place is not None and place not in found.setdefault(name, []):
                    found[name].append(place)
    return {name: places for name, places in found.items() if places}


_TARGET = "target of "


def _to_targets(
    module: Module, ctx: Context, samples: Samples
) -> tuple[Module, list[dict[str, Array]]]:
    """Returns a module of the differences to what it gives now, with samples that hold that."""
    assert ctx.activations is not None, "checked before"
    outputs: dict[str, Value] = {
        name: value
        for name, value in zip(module.graph.output_names, module.graph.outputs, strict=True)
        if value.dtype is not None and value.dtype.is_float
    }
    values = list(dict.fromkeys(outputs.values()))
    extended = []
    for sample, found in zip(
        samples, ctx.activations.activations(module, values, samples), strict=True
    ):
        own = {f"{_TARGET}{name}": found[value] for name, value in outputs.items()}
        extended.append({**sample, **own})
    moved = module.clone()
    made = dict(zip(moved.graph.output_names, moved.graph.outputs, strict=True))
    builder = Builder(moved.graph)
    differences = []
    for name in outputs:
        assert isinstance(made[name].type, TensorType), "a float output is a tensor"
        goal = moved.graph.add_input(f"{_TARGET}{name}", made[name].type)
        differences.append((name, builder.op(arithmetic.sub, made[name], goal)))
    moved.graph.set_outputs(differences)
    return moved, extended


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -40, 40))))


def _descend(
    start: Mapping[Group, Array],
    slopes: Callable[[Mapping[Group, Array]], dict[Group, Array]],
    steps: int,
    rate: float = _RATE,
) -> dict[Group, Array]:
    """Returns where Adam gets to."""
    at = {group: each.astype(np.float64) for group, each in start.items()}
    mean = {group: np.zeros_like(each) for group, each in at.items()}
    square = {group: np.zeros_like(each) for group, each in at.items()}
    for step in range(1, steps + 1):
        for group, slope in slopes(at).items():
            mean[group] = 0.9 * mean[group] + 0.1 * slope
            square[group] = 0.99 * square[group] + 0.01 * np.square(slope)
            down = mean[group] / (1 - 0.9**step)
            length = np.sqrt(square[group] / (1 - 0.99**step)) + 1e-12
            at[group] = at[group] - rate * (1 - (step - 1) / steps) * down / length
    return at
