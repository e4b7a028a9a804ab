"""Hybrid stacks: which layers, or heads, stay a softmax, under a budget of bytes.

Every layer's linear form stands beside its attention, fitted or not. What it costs to use it is
measured: the divergence of its weights, and how much of that reaches the outputs (sensitivity).
What it saves is the cache. The solver chooses. A head costs its own divergence times the
sensitivity of its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

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
By = Literal["layers", "heads"]

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
        heads: What every key head has of the error: in proportion to KL, or, where there is none,
            to the squared difference of the heads' results.
    """

    number: int
    kl: float | None
    error: float
    sensitivity: float | None
    cache_bytes: int
    state_bytes: int
    heads: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """A choice.

    Attributes:
        linear: Numbers of the layers that become linear.
        heads: Of layers of which a part does, by number: the key heads that do.
        costs: What was measured of every layer.
        bytes: Of caches and states.
        before: Of caches, when all layers are a softmax.
    """

    linear: tuple[int, ...]
    heads: Mapping[int, tuple[int, ...]]
    costs: tuple[LayerCost, ...]
    bytes: float
    before: float

    def decisions(self) -> dict[str, object]:
        """Returns what a report keeps, and a later run takes again."""
        found: dict[str, object] = {"linear": list(self.linear)}
        if self.heads:
            found["heads"] = {str(number): list(heads) for number, heads in self.heads.items()}
        return {**found, "layers": [asdict(each) for each in self.costs]}


def choose_stack(
    module: Module, ctx: Context, places: Sequence[tuple[Place, Built]], ratio: float, tokens: int,
    *, by: By,
) -> Stack:  # fmt: skip
    """Returns which layers, or heads of layers, become linear.

    Args:
        module: Holds every branch beside its attention.
        ctx: Runs modules, on samples or training data.
        places: The attentions and their branches.
        ratio: Bytes that are allowed, of the caches of `tokens` positions.
        tokens: Length of the text that the budget is for.
        by: What the solver chooses.

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
    units, tables = [], []
    for each in costs:
        parts = each.heads if by == "heads" else (each.error,)
        for head, error in enumerate(parts):
            units.append(Unit(f"{each.number}.{head}", np.array([0.0, 1.0]), np.array([error, 0])))
            sizes = np.array([each.state_bytes, each.cache_bytes], np.float64)
            tables.append(sizes / len(parts))
    before = float(sum(each.cache_bytes for each in costs))
    found = solve(Problem(tuple(units), SeparateCosts(tables), ratio * before))
    levels = iter(found.choice)
    linear, heads = [], {}
    for each in costs:
        count = len(each.heads) if by == "heads" else 1
        chosen = tuple(head for head in range(count) if next(levels) == 0)
        if len(chosen) == count:
            linear.append(each.number)
        elif chosen:
            heads[each.number] = chosen
    return Stack(tuple(linear), heads, costs, found.cost, before)


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
    rest = [(place, built) for place, built in places if built.log_weights is None]
    differences = _differences(module, rest, source, samples)
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
        by_head = divergences.get(place.number)
        kl = None if by_head is None else float(by_head.mean())
        parts = _shares(place, differences[place.number] if by_head is None else by_head)
        found.append(LayerCost(
            place.number, kl, error, None if not kl else error / kl,
            _cache_bytes(place, tokens), _state_bytes(built), tuple(error * x for x in parts),
        ))  # fmt: skip
    return found


def _shares(place: Place, by_head: Array) -> tuple[float, ...]:
    """Returns what part of a layer's cost each key head has, of figures of the query heads."""
    groups = np.maximum(by_head, 0).reshape(place.kv_heads, place.kv_groups).sum(1)
    total = groups.sum()
    if total == 0:
        return (1 / len(groups),) * len(groups)
    return tuple(float(x) for x in groups / total)


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
) -> dict[int, Array]:
    """Returns KL of weights by layer, f64[H], all layers fed what the teacher has."""
    return _by_head(module, source, samples, _kl, {
        place.number: (scores_of(place), built.log_weights)
        for place, built in places
        if built.log_weights is not None
    })  # fmt: skip


def _differences(
    module: Module,
    places: Sequence[tuple[Place, Built]],
    source: ActivationSource,
    samples: Samples,
) -> dict[int, Array]:
    """Returns squared differences of results by layer, f64[H]."""
    return _by_head(module, source, samples, _squares, {
        place.number: (place.node.output, built.out) for place, built in places
    })  # fmt: skip


def _by_head(
    module: Module,
    source: ActivationSource,
    samples: Samples,
    compare: Callable[[Array, Array], Array],
    pairs: Mapping[int, tuple[Value, Value]],
) -> dict[int, Array]:
    """Returns a figure of every head by layer, the mean over samples."""
    if not pairs:
        return {}
    values = list(dict.fromkeys(value for pair in pairs.values() for value in pair))
    sums: dict[int, list[Array]] = {number: [] for number in pairs}
    for item in source.activations(module, values, samples):
        for number, (before, after) in pairs.items():
            sums[number].append(compare(item[before], item[after]))
    return {number: np.mean(rows, axis=0) for number, rows in sums.items()}


def _kl(softmax: Array, linear: Array) -> Array:
    """Returns KL of rows, f64[H], of scores and logarithms of weights, [B, H, S, T]."""
    before, after = (_log_softmax(each) for each in (softmax, linear))
    made: Array = (np.exp(before) * (before - after)).sum(-1).mean((0, 2))
    return made


def _squares(before: Array, after: Array) -> Array:
    wide = before.astype(np.float64)
    made: Array = np.square(after - wide).mean((0, 2, 3))
    return made


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
