"""How a model uses its depth: what every layer adds, and what is lost without it.

Source: Csordás et al., Do Language Models Use Their Depth Efficiently?, 2025, sections 3.1 and 3.2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.calibration.output_error import OutputError
from regraft.passes.depth.influence import turned_by
from regraft.passes.depth.stack import layers_of, num_parameters, removable, without
from regraft.passes.protocol import ActivationSource, Samples

Array = np.ndarray[Any, Any]

_WHO = "the report of depth"


@dataclass(frozen=True, slots=True)
class Branch:
    """What one residual sum adds to the stream.

    Args:
        name: Of the sum.
        share: Length of what is added over that of the stream, mean over positions.
        cosine: Of what is added and the stream, mean over positions.
    """

    name: str
    share: float
    cosine: float


@dataclass(slots=True)
class LayerUse:
    """What one layer does.

    Attributes:
        number: From 0.
        name: Of its result.
        parameters: Numbers of the weights that it alone reads.
        influence: Mean of 1 - cos(what enters, what leaves).
        branches: Its residual sums.
        outputs_without: Relative error of the outputs without it; None where it cannot go.
        later_without: By number of a later layer of its stack, how much what that adds changes
            without it, relative.
    """

    number: int
    name: str
    parameters: int
    influence: float = 0.0
    branches: list[Branch] = field(default_factory=list)
    outputs_without: float | None = None
    later_without: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DepthReport:
    """The layers of a module.

    Args:
        layers: In order.
        adds_up: Of every stack whose sums follow each other directly: how far what enters it and
            all that is added are from what leaves it, relative.
    """

    layers: tuple[LayerUse, ...]
    adds_up: tuple[float, ...]

    def describe(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return asdict(self)


def depth_report(module: Module, source: ActivationSource, samples: Samples) -> DepthReport:
    """Returns what every repeated layer does on samples.

    Args:
        module: The module, in canonical form.
        source: Runs it, and copies without a layer: one run per layer.
        samples: What they run on.
    """
    layers = layers_of(module)
    uses = [
        LayerUse(number, str(layer.output.name), num_parameters(layer))
        for number, layer in enumerate(layers)
    ]
    values = [
        value
        for layer in layers
        for value in (
            layer.input,
            layer.output,
            *(v for s in layer.sums for v in (s.skip, s.branch)),
        )
    ]
    seen = _states(module, values, source, samples)
    for layer, use in zip(layers, uses, strict=True):
        use.influence = float(turned_by(seen[layer.input], seen[layer.output]).mean())
        use.branches = [
            Branch(str(each.output.name), *_compared(seen[each.branch], seen[each.skip]))
            for each in layer.sums
        ]
    _remove_each(module, layers, uses, seen, source, samples)
    sums = tuple(
        error
        for group in repeated_layers(module.graph)
        if (error := _sum_error(group.layers, seen, module, source, samples)) is not None
    )
    return DepthReport(tuple(uses), sums)


def _states(
    module: Module, values: list[Value], source: ActivationSource, samples: Samples
) -> dict[Value, Array]:
    """Returns rows f64[R, D] of values over all samples."""
    wanted = list(dict.fromkeys(values))
    found: dict[Value, list[Array]] = {value: [] for value in wanted}
    for item in source.activations(module, wanted, samples):
        for value in wanted:
            array = item[value]
            found[value].append(array.reshape(-1, array.shape[-1]).astype(np.float64))
    return {value: np.concatenate(parts) for value, parts in found.items()}


def _compared(branch: Array, skip: Array) -> tuple[float, float]:
    tiny = np.finfo(np.float64).tiny
    lengths = [np.maximum(np.linalg.norm(each, axis=-1), tiny) for each in (branch, skip)]
    cosine = (branch * skip).sum(-1) / (lengths[0] * lengths[1])
    return float((lengths[0] / lengths[1]).mean()), float(cosine.mean())


def _remove_each(
    module: Module,
    layers: list[Layer],
    uses: list[LayerUse],
    seen: dict[Value, Array],
    source: ActivationSource,
    samples: Samples,
) -> None:
    outputs = OutputError(module, source, samples, _WHO)
    stacks = _stack_numbers(module)
    for number in removable(layers):
        copy = without(module, [number])
        uses[number].outputs_without = outputs.error(copy) ** 0.5
        # layers of the copy have the nodes of those of the module, in the same order
        later = [n for n in range(number + 1, len(layers)) if stacks[n] == stacks[number]]
        names = {n: [s.branch.name for s in layers[n].sums] for n in later}
        by_name = {v.name: v for node in copy.graph for v in node.outputs}
        found = {
            n: [by_name[name] for name in each if name in by_name] for n, each in names.items()
        }
        wanted = [value for each in found.values() for value in each]
        states = _states(copy, wanted, source, samples) if wanted else {}
        for n in later:
            before = [seen[s.branch] for s in layers[n].sums]
            if len(found[n]) == len(before):
                after = [states[value] for value in found[n]]
                uses[number].later_without[n] = _changed(before, after)


def _changed(before: list[Array], after: list[Array]) -> float:
    off = sum(float(np.square(a - b).sum()) for a, b in zip(after, before, strict=True))
    return float(np.sqrt(off / max(sum(float(np.square(b).sum()) for b in before), 1e-30)))


def _stack_numbers(module: Module) -> list[int]:
    groups = repeated_layers(module.graph)
    return [idx for idx, group in enumerate(groups) for _ in group.layers]


def _sum_error(
    layers: tuple[Layer, ...],
    seen: dict[Value, Array],
    module: Module,
    source: ActivationSource,
    samples: Samples,
) -> float | None:
    sums = [each for layer in layers for each in layer.sums]
    if any(b.skip is not a.output for a, b in pairwise(sums)):
        return None
    last = sums[-1].output
    total = seen[sums[0].skip] + sum(seen[each.branch] for each in sums)
    final = _states(module, [last], source, samples)[last]
    return float(np.abs(total - final).max() / max(float(np.abs(final).max()), 1e-30))
