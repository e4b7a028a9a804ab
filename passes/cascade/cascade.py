"""The pass `cascade`: the network before a lossy pass answers what the one after is unsure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    arithmetic,
    cast,
    control,
    functions,
    logical,
    reduce,
    reshaping,
    selecting,
    slicing,
)
from regraft.ir.types import DType
from regraft.passes.cascade.branch import (
    is_scores,
    masked_branch,
    plain_branch,
    row_branch,
    whole_branch,
)
from regraft.passes.cascade.threshold import Threshold, find_threshold, threshold_at
from regraft.passes.protocol import (
    Context,
    Contract,
    LatencySource,
    Lossy,
    PassResult,
    Samples,
    Skip,
)

Array = np.ndarray[Any, Any]

_LEAST_PROBABILITY = 1e-9
_LEAST_SAMPLES = 16
_EMBEDDINGS = frozenset(
    {"embedding", "embeddings", "sentence_embedding", "embeds", "pooler_output"}
)
"""What converters call outputs that are no scores."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """Lets the network before a lossy pass answer where the one after is unsure of the class.

    ## What it does
    The rewritten classifier answers where its largest score leads the next by a threshold. Where
    it does not, the network before the first lossy pass runs and answers, exactly as it always did.
    The threshold is the least with which at least `agreement` of all decisions are expected to
    stay. It is found on the last quarter of the samples, which the passes before are not shown.

    Batches of any size run the network before on their unsure rows alone.

    ## When it applies
    To classifiers: one output f32[B, C]. After a lossy pass such as `quantize`, with samples. Where
    both together would not be faster than the network before alone, it fails (exit code 4).

    ## Example
    ```
    %y = quantized(%x)                      // f32[1, C]
    ```
    becomes
    ```
    %best = top_k(%y) {k = 2}
    %sure = greater_or_equal(sub(%best[0], %best[1]), 0.8)
    %z = if(%sure) {%y} else {before(%x)}
    ```

    ## Exactness
    Lossy: of the decisions, at least `agreement` are expected to be those of the network before.
    What it falls back on is equal to that. The file holds both networks.

    ## References
    Viola and Jones, Rapid Object Detection using a Boosted Cascade, 2001; Chen et al., FrugalGPT,
    2023 (cascades of models by confidence).

    Args:
        agreement: Share of inputs whose decision has to stay.
    """

    name: ClassVar[str] = "cascade"
    contract: ClassVar[Contract] = Lossy("output")
    needs_source: ClassVar[bool] = True

    agreement: float = 0.99

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Finds the threshold, writes both networks, measures them.

        Raises:
            UsageError: Without a lossy pass before, without samples, or for no classifier.
            TargetError: Where it would be slower than the network before.
        """
        if not 0 < self.agreement < 1:
            raise UsageError(
                f"pass `cascade`, option `agreement`: {self.agreement:g} is not between 0 and 1"
            )
        before = ctx.teacher
        if before is None:
            raise UsageError(
                "pass `cascade`: no lossy pass comes before it: there is nothing to fall back on",
                hint="put it after one: quantize,cascade",
            )
        _check(module, before)
        old, new = (_scores(each, ctx) for each in (before, module))
        if _are_directions(old):
            raise _no_classifier(f"`{before.graph.output_names[0]}`, vectors of length one")
        probable = all(bool(_sums_to_one(each)) for each in (old, new))
        if probable:
            old, new = (np.log(np.maximum(each, _LEAST_PROBABILITY)) for each in (old, new))
        recorded = ctx.replay.get(self.name, {}).get("lead")
        found = (
            find_threshold(old, new, self.agreement) if recorded is None
            else threshold_at(old, new, float(recorded))
        )  # fmt: skip
        stats: dict[str, int | float] = {
            "samples": len(ctx.held_out), "agreement-without": round(1 - found.flips, 4),
            "agreement-expected": round(1 - found.expected, 4),
            "agreement-on-samples": round(1 - found.counted, 4),
        }  # fmt: skip
        if found.lead <= 0:
            skip = Skip(str(module.graph.output_names[0]), "enough decisions stay without")
            return PassResult(False, stats, (skip,), {"lead": found.lead})
        if math.isinf(found.lead):
            raise _slower(self.agreement, found, None)
        speed = (
            None if ctx.latency is None else _speed(module, before, found, ctx.latency, probable)
        )
        if speed is not None and speed < 1:
            raise _slower(self.agreement, found, speed)
        write_cascade(module, before, found.lead, is_probable=probable)
        stats |= {"lead": round(found.lead, 4), "fallback-share": round(found.fallback, 4)}
        if speed is not None:
            stats["expected-speed"] = round(speed, 3)
        return PassResult(True, stats, decisions={"lead": found.lead})


def _speed(
    module: Module, before: Module, found: Threshold, latency: LatencySource, probable: bool
) -> float:
    """Returns the speed to expect, that of the network before being 1."""
    times = []
    for lead in (-math.inf, math.inf):  # none falls back, all do
        copy = module.clone()
        write_cascade(copy, before, lead, is_probable=probable)
        times.append(latency.ratio(before, copy))
    return 1 / (times[0] * (1 - found.fallback) + times[1] * found.fallback)


def write_cascade(module: Module, before: Module, lead: float, *, is_probable: bool) -> None:
    """Makes a module fall back on another, in place.

    Args:
        module: The rewritten classifier.
        before: What answers where that is unsure, with the same inputs and output.
        lead: Least lead of the largest score with which the first one answers.
        is_probable: Whether scores are probabilities: leads are then those of their logarithms.
    """
    graph = module.graph
    scores = graph.outputs[0]
    b = Builder(graph)
    best, _ = b.multi(selecting.top_k, scores, k=2)
    if is_probable:
        best = b.op(arithmetic.max_, best, b.constant(np.asarray(_LEAST_PROBABILITY, np.float32)))
        best = b.op(functions.log, best)
    first, second = (
        b.op(slicing.slice_, best, starts=(i,), ends=(i + 1,), axes=(1,)) for i in range(2)
    )
    ahead = b.op(arithmetic.sub, first, second)
    least = b.constant(np.asarray(lead, np.float32))
    sure = b.op(logical.greater_or_equal, ahead, least)  # NaN leads nothing
    unsure = b.op(logical.logical_not, sure)
    any_ = b.op(reduce.reduce_max, b.op(cast.cast, unsure, to=DType.I32), keepdims=False)
    condition = b.op(cast.cast, any_, to=DType.BOOL)
    size = None if scores.shape is None else scores.shape[0]
    inputs = [_input(graph.inputs, value) for value in before.graph.inputs]
    captures = [*inputs, scores, b.op(reshaping.squeeze, unsure, axes=(1,))]
    symbol = size.as_symbol() if isinstance(size, Dim) else None
    if size == 1:
        fallback = whole_branch(before, graph, captures)
    elif symbol is not None:
        fallback = row_branch(before, graph, captures, symbol.name)
    else:
        fallback = masked_branch(before, graph, captures)
    bodies = (fallback, plain_branch(graph, captures, len(inputs)))
    node = b.node(
        control.if_, condition, *captures, bodies=bodies, num_captures=len(captures), num_outputs=1
    )
    graph.set_outputs([(graph.output_names[0], node.outputs[0])])


def _input(inputs: Sequence[Value], value: Value) -> Value:
    return next(each for each in inputs if each.name == value.name)


def _check(module: Module, before: Module) -> None:
    for each in (module, before):
        if len(each.graph.outputs) != 1 or not is_scores(each.graph.outputs[0]):
            found = ", ".join(
                f"`{name}` {value.type}"
                for name, value in zip(each.graph.output_names, each.graph.outputs, strict=True)
            )
            raise _no_classifier(found)
        if each.graph.output_names[0] in _EMBEDDINGS:
            raise _no_classifier(f"`{each.graph.output_names[0]}`, no scores of classes")
    names = [[value.name for value in each.graph.inputs] for each in (module, before)]
    if set(names[1]) - set(names[0]):
        raise UsageError("pass `cascade`: a pass before it took inputs away")


def _no_classifier(found: str) -> UsageError:
    return UsageError(
        f"pass `cascade`: it takes a classifier of one output f32[B, C], this has {found}",
        hint="cut the other outputs off, or leave the pass out",
    )


def _are_directions(scores: Array) -> bool:
    """Whether rows are vectors of length one, as encoders give, and no probabilities."""
    return bool((scores < 0).any() and np.allclose(np.linalg.norm(scores, axis=-1), 1, atol=1e-3))


def _samples(ctx: Context) -> Samples:
    if len(ctx.held_out) < _LEAST_SAMPLES:
        raise UsageError(
            f"pass `cascade`: {len(ctx.held_out)} samples are held back for its threshold, it "
            f"takes {_LEAST_SAMPLES} and more",
            hint="a quarter of --calibrate DATA is held back: give a hundred samples and more",
        )
    return ctx.held_out


def _scores(module: Module, ctx: Context) -> Array:
    """Returns f64[N, C] of the samples that nothing was fitted on."""
    samples = _samples(ctx)
    if ctx.activations is None:
        raise UsageError("pass `cascade`: there is nothing to run the module with")
    output = module.graph.outputs[0]
    rows = [
        np.array(item[output], np.float64)
        for item in ctx.activations.activations(module, [output], samples)
    ]
    return np.concatenate(rows)


def _sums_to_one(scores: Array) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-3))


def _slower(agreement: float, found: Threshold, speed: float | None) -> TargetError:
    took = "it would be slower than" if speed is None else f"it would run at {speed:.2f}x of"
    return TargetError(
        f"pass `cascade`: for {agreement:.1%} of the decisions to stay, {found.fallback:.0%} of "
        f"the inputs fall back, and {took} the network before alone "
        f"({1 - found.flips:.1%} stay without it)",
        hint="ask for less `agreement`, or keep more in float before (`quantize{budget=0.02}`)",
    )
