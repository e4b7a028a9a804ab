"""How important the units of a group are: a score per unit from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from regraft.ir.constants import weight
from regraft.ir.ops.norm import batch_norm
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.protocol import Context
from regraft.passes.pruning.energy import energy_shares
from regraft.passes.pruning.flows import flow_slots, obs_shares, sequential_slots
from regraft.passes.pruning.gradients import gradient_slots
from regraft.passes.pruning.measured import Slots, activation_slots, samples_of, taylor_slots

Array = np.ndarray[Any, Any]
Scores = dict[Group, Array]
"""f64[blocks, units] per group."""

Criterion = Literal[
    "l1", "l2", "random", "bn-scale", "taylor", "taylor-sum", "fisher", "snip", "grasp",
    "activation", "wanda", "fluctuation", "sequential", "energy", "obs", "gates",
]  # fmt: skip
SHARES: tuple[Criterion, ...] = ("energy", "obs")
"""Criteria whose scores are shares of what products compute: they compare across groups."""

Reduction = Literal["mean", "sum", "max", "prod", "first"]
Normalization = Literal["mean", "none", "sum", "max", "gaussian", "lamp"]

CRITERIA: tuple[str, ...] = get_args(Criterion)

_REDUCE: Mapping[str, Callable[[Array], Array]] = {
    "mean": lambda slots: slots.mean(0),
    "sum": lambda slots: slots.sum(0),
    "max": lambda slots: slots.max(0),
    "prod": lambda slots: slots.prod(0),
    "first": lambda slots: slots[0],
}


def _lamp(scores: Array) -> Array:
    """Returns each squared score over the sum of those that are not smaller (LAMP)."""
    flat = np.square(scores.reshape(-1))
    order = np.argsort(flat, kind="stable")
    rest = np.cumsum(flat[order][::-1])[::-1]
    result = np.empty_like(flat)
    result[order] = flat[order] / np.maximum(rest, np.finfo(np.float64).tiny)
    return result.reshape(scores.shape)


def _over(scores: Array, by: float) -> Array:
    return scores / by if by > 0 else scores


_NORMALIZE: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: _over(scores, float(scores.mean())),
    "sum": lambda scores: _over(scores, float(scores.sum())),
    "max": lambda scores: _over(scores, float(scores.max())),
    "gaussian": lambda scores: _over(scores - scores.mean(), float(scores.std())),
    "lamp": _lamp,
}


def score(
    coupling: Coupling,
    criterion: Criterion,
    reduction: Reduction,
    normalization: Normalization,
    seed: int,
    ctx: Context | None = None,
) -> Scores:
    """Returns a score per unit of every group; each weight is read once.

    Args:
        coupling: The groups.
        criterion: `l1` and `l2` norms of what belongs to a unit, `bn-scale` the absolute gain of
            batch normalizations (`l2` for groups without one), `random`; measured on samples are
            the others (`l2` for groups within bodies, whose values nobody gives).
        reduction: How the scores of a group's slots become one.
        normalization: Makes groups comparable.
        seed: Of `random`.
        ctx: Samples and sources of criteria that are measured.

    Raises:
        UsageError: For a measured criterion without its source or samples.
    """
    if criterion == "gates":
        raise AssertionError("gates need a budget: they are learned by the pass")
    if criterion == "random":
        rng = np.random.default_rng(seed)
        return {group: rng.random((group.num_blocks, group.size)) for group in coupling.groups}
    slots = _slots_by(criterion, coupling, ctx or Context(seed=seed))
    gains = _batch_norm_gains(coupling) if criterion == "bn-scale" else frozenset()
    scores: Scores = {}
    for group in coupling.groups:
        named = slots[group]
        chosen = [array for name, array in named if name in gains] or [a for _, a in named]
        reduced = _REDUCE[reduction](np.stack(chosen))
        shaped = reduced.reshape(group.num_blocks, group.size)
        scores[group] = _NORMALIZE[normalization](shaped)
    return scores


def _slots_by(criterion: Criterion, coupling: Coupling, ctx: Context) -> Slots:
    match criterion:
        case "taylor" | "taylor-sum":
            return taylor_slots(coupling, ctx, signed=criterion == "taylor-sum")
        case "activation":
            found = activation_slots(coupling, ctx)
            if all(found.values()):
                return found
            weights = _slots(coupling, 2)  # of groups within bodies, whose values nobody gives
            return {group: named or weights[group] for group, named in found.items()}
        case "fisher" | "snip" | "grasp":
            return gradient_slots(coupling, ctx, criterion)
        case "wanda" | "fluctuation" | "sequential":
            if criterion == "sequential" and ctx.activations is not None:
                found = sequential_slots(coupling, ctx, samples_of(ctx))
            else:
                found = flow_slots(coupling, ctx, criterion)
            weights = _slots(coupling, 2)  # of groups that no product of the main graph sums over
            return {group: named or weights[group] for group, named in found.items()}
        case "energy" | "obs":
            measure = energy_shares if criterion == "energy" else obs_shares
            shares = measure(coupling, ctx, samples_of(ctx))
            weights = _slots(coupling, 2)  # of groups that no product of the main graph sums over
            return {
                group: [("", shares[group])]
                if group in shares
                else [(name, _share(norms)) for name, norms in weights[group]]
                for group in coupling.groups
            }
        case _:
            return _slots(coupling, 1 if criterion == "l1" else 2)


def _share(norms: Array) -> Array:
    """Returns what part of a weight's energy is that of every unit."""
    squares = np.square(norms)
    return _over(squares, float(squares.sum()))


def _slots(coupling: Coupling, power: int) -> Slots:
    """Returns per group the norms of its units in every weight, in order of the weights."""
    wanted: dict[str, list[tuple[int, Group]]] = {}
    for group in coupling.groups:
        for name, axis in group.weights:
            wanted.setdefault(name, []).append((axis, group))
    store = coupling.module.weights
    slots: Slots = {group: [] for group in coupling.groups}
    for name, places in wanted.items():
        if not store[name].dtype.is_float:
            continue
        array = store[name].numpy()
        array = array if array.dtype == np.float64 else array.astype(np.float32)
        sizes = np.abs(array) if power == 1 else np.square(array)
        for axis, group in places:
            others = tuple(i for i in range(sizes.ndim) if i != axis)
            per_position = sizes.sum(others, dtype=np.float64)
            units = unit_of(coupling.builder.weights[name][axis], group.space)
            held = units >= 0
            total = np.bincount(
                units[held], per_position[held], minlength=group.num_blocks * group.size
            )
            slots[group].append((name, total if power == 1 else np.sqrt(total)))
    return slots


def _batch_norm_gains(coupling: Coupling) -> frozenset[str]:
    names = set()
    for node in coupling.module.graph.walk():
        gain = node.inputs[1] if node.op is batch_norm else None
        if gain is not None and gain.producer is not None and gain.producer.op is weight:
            names.add(gain.producer.attrs["name"])
    return frozenset(names)
