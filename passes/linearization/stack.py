"""Hybrid stacks: which layers stay a softmax, under a budget of bytes for caches and states.

Every layer's linear form stands beside its attention, fitted or not. What it costs to use it is
measured: the divergence of its weights, and how much of that reaches the outputs (sensitivity).
What it saves is the cache. The solver chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from regraft.ir.dims import Dim
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.linearization.place import Built, Place
from regraft.passes.linearization.weights import scores_of
from regraft.passes.protocol import ActivationSource, Context, Samples
from regraft.passes.solver import Problem, SeparateCosts, Unit, solve

Array = np.ndarray[Any, Any]

_BATCHES = 4
_BYTES = 4
"""Of a number in caches and states."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer costs in its linear form, and what it saves.

    Attributes:
        number: Which attention, from 0.
        kl: KL of the softmax's weights from the linear branch's, nats per row; None where those are
            no distribution.
        error: Squared error of the outputs over their squares when this layer alone is linear.
        sensitivity: Error per nat.
        cache_bytes: Of one sequence, as a softmax.
        state_bytes: Of one sequence, linear.
    """

    number: int
    kl: float | None
    error: float
    sensitivity: float | None
    cache_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Stack:
    """A choice.

    Attributes:
        linear: Numbers of the layers that become linear.
        costs: What was measured of every layer.
        bytes: Of caches and states.
        before: Of caches, when all layers are a softmax.
    """

    linear: tuple[int, ...]
    costs: tuple[LayerCost, ...]
    bytes: float
    before: float

    def decisions(self) -> dict[str, object]:
        """Returns what a report keeps."""
        return {"linear": list(self.linear), "layers": [asdict(each) for each in self.costs]}


def choose_stack(
    module: Module, ctx: Context, places: Sequence[tuple[Place, Built]], ratio: float, tokens: int
) -> Stack:
    """Returns which layers become linear.

    Args:
        module: Holds every branch beside its attention.
        ctx: Runs modules, on samples or training data.
        places: The attentions and their branches.
        ratio: Bytes that are allowed, of the caches of `tokens` positions.
        tokens: Length of the text that the budget is for.

    Raises:
        UsageError: Without data, or without what runs a module.
        TargetError: When not even all layers linear are within the budget.
    """
    samples = _samples(ctx)
    if ctx.activations is None or not samples:
        raise UsageError(
            "pass `linearize-attention`, option `cache`: layers are measured, and there is no data",
            hint="give `--calibrate DATA` or `--train DATA` (`samples=`, `training=` in Python)",
        )
    costs = tuple(_measured(module, places, ctx.activations, samples, tokens))
    units = tuple(
        Unit(str(each.number), np.array([0.0, 1.0]), np.array([each.error, 0.0])) for each in costs
    )
    tables = [np.array([each.state_bytes, each.cache_bytes], np.float64) for each in costs]
    before = float(sum(each.cache_bytes for each in costs))
    found = solve(Problem(units, SeparateCosts(tables), ratio * before))
    linear = tuple(
        each.number for each, level in zip(costs, found.choice, strict=True) if level == 0
    )
    return Stack(linear, costs, found.cost, before)


def _samples(ctx: Context) -> Samples:
    if ctx.samples or ctx.training is None:
        return ctx.samples
    return list(islice(ctx.training.batches(), _BATCHES))


def _measured(
    module: Module,
    places: Sequence[tuple[Place, Built]],
    source: ActivationSource,
    samples: Samples,
    tokens: int,
) -> list[LayerCost]:
    divergences = _divergences(module, places, source, samples)
    wanted = _outputs(module, source, samples)
    found = []
    for place, built in places:
        values: dict[Value, Value] = {}
        alone = module.clone(values)
        node = values[place.node.output].producer
        if node is None:
            raise AssertionError("an attention makes its result")
        alone.graph.replace(node, [values[built.out]])
        error = _error(wanted, _outputs(alone, source, samples))
        kl = divergences.get(place.number)
        found.append(LayerCost(
            place.number, kl, error, None if not kl else error / kl,
            _cache_bytes(place, tokens), _state_bytes(built),
        ))  # fmt: skip
    return found


def _outputs(module: Module, source: ActivationSource, samples: Samples) -> list[dict[str, Array]]:
    names = module.graph.output_names
    values = list(dict.fromkeys(module.graph.outputs))
    return [
        {name: item[value] for name, value in zip(names, module.graph.outputs, strict=True)}
        for item in source.activations(module, values, samples)
    ]


def _error(wanted: Samples, found: Samples) -> float:
    """Returns squared differences over squares, of all float outputs."""
    total = squares = 0.0
    for before, after in zip(wanted, found, strict=True):
        for name, array in before.items():
            if array.dtype.kind == "f":
                exact = array.astype(np.float64)
                total += float(np.square(after[name] - exact).sum())
                squares += float(np.square(exact).sum())
    return total / max(squares, 1e-30)


def _divergences(
    module: Module,
    places: Sequence[tuple[Place, Built]],
    source: ActivationSource,
    samples: Samples,
) -> dict[int, float]:
    """Returns KL of weights by layer, all layers fed what the teacher has."""
    wanted: dict[str, Value] = {}
    for place, built in places:
        if built.log_weights is not None:
            wanted[f"{place.number} softmax"] = scores_of(place)
            wanted[f"{place.number} linear"] = built.log_weights
    if not wanted:
        return {}
    names = {value: name for name, value in wanted.items()}
    rows = [
        {names[value]: array for value, array in item.items()}
        for item in source.activations(module, list(names), samples)
    ]
    return {
        place.number: float(np.mean([_kl(row, place.number) for row in rows]))
        for place, built in places
        if built.log_weights is not None
    }


def _kl(row: dict[str, Array], number: int) -> float:
    before, after = (_log_softmax(row[f"{number} {which}"]) for which in ("softmax", "linear"))
    return float((np.exp(before) * (before - after)).sum(-1).mean())


def _log_softmax(
    x: Array,
) -> Array:
    wide = x.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    made: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return made


def _cache_bytes(place: Place, tokens: int) -> int:
    return _BYTES * tokens * place.kv_heads * (place.size + place.value_size)


def _state_bytes(built: Built) -> int:
    """Returns bytes of the states of one sequence of everything that a branch is made of."""
    total = 0
    seen: set[Value] = set()
    pending = [built.out]
    while pending:
        value = pending.pop()
        node = value.producer
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op.name in ("linear_attention", "hybrid_attention"):
            for state in node.outputs[1:]:
                sizes = (state.shape or ())[1:]
                if not any(isinstance(size, Dim) for size in sizes):
                    total += _BYTES * int(np.prod([int(str(size)) for size in sizes]))
            continue
        if node.op.name != "attention":
            pending += [operand for operand in node.inputs if operand is not None]
    return total
