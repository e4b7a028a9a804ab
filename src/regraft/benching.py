"""`bench`: latency of models by the timing rule, relative to the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.comparison import check_interfaces
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.module import Module
from regraft.passes.check.compare import compare_outputs
from regraft.passes.check.runners import accepts
from regraft.passes.check.samples import (
    Sample,
    clamp_size,
    generate_samples,
    input_symbols,
    leading_symbols,
)
from regraft.passes.protocol import Context
from regraft.pipelines import with_legalization
from regraft.samples import bind_samples, check_dims
from regraft.sources import Source
from regraft.tables import user_tables
from regraft.timing import MIN_ROUNDS, MIN_TURN_S, Ratio, interleaved, median, quantile, ratio

_LONG_ROUND_S = 1.0
_TYPICAL_SIZES = (128, 64, 32)
_SEARCH_ROUNDS = 21
"""Rounds of a trial of a search, which the search repeats."""

_FEW_ROUNDS = 11
"""Rounds of a comparison whose round takes more than a second."""


@dataclass(frozen=True, slots=True)
class Run:
    """Latency of one model.

    Args:
        path: Its label.
        seconds: One entry per round.
        ratio: To the first model, round by round.
        num_bytes: Its size on disk, None when it has no file.
        max_rel: The largest difference of an output to the first model's, relative to its largest
            element.
    """

    path: str
    seconds: Sequence[float]
    ratio: Ratio
    num_bytes: int | None = None
    max_rel: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns INTERFACE's entry."""
        return {
            "path": self.path,
            "median_ms": median(self.seconds) * 1e3,
            "p10_ms": quantile(self.seconds, 0.1) * 1e3,
            "p90_ms": quantile(self.seconds, 0.9) * 1e3,
            "ratio": self.ratio.median,
            "interval": [self.ratio.low, self.ratio.high],
            "bytes": self.num_bytes,
            "max_rel": self.max_rel,
        }


@dataclass(frozen=True, slots=True)
class Bench:
    """A comparison.

    Args:
        runs: One per model, in order.
        binding: Sizes of the sample.
        threads: Threads within an operator.
    """

    runs: tuple[Run, ...]
    binding: Mapping[str, int]
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Returns INTERFACE's document."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "rounds": self.runs[0].ratio.rounds,
            "threads": self.threads,
            "binding": dict(self.binding),
        }


def bench(
    sources: Sequence[Source],
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    threads: int = 1,
    rounds: int | None = None,
) -> Bench:
    """Measures models on one sample, interleaved, under the runtime's default options.

    Args:
        sources: The models; ratios are to the first.
        samples: The first one is used; default: a generated sample.
        dims: Sizes of a generated sample.
        seed: Seed of its values.
        threads: Threads within an operator.
        rounds: Number of rounds; default: 50, fewer where a round takes more than a second.

    Raises:
        InputError: When a model takes other inputs than the first.
        UnsupportedError: When the runtime cannot load or run one of them.
    """
    if rounds is not None and rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing", hint="give --rounds 50")
    first = sources[0]
    for other in sources[1:]:
        check_interfaces(first.module, other.module)
    runners = [session_of(source, threads) for source in sources]
    if samples:
        sample: Sample = bind_samples(first.module, samples[:1])[0]
    else:
        check_dims(first.module, dims or {})
        sample = _typical_sample(first.module, runners[0], dims or {}, seed)
    outputs = []
    for source, runner in zip(sources, runners, strict=True):
        try:
            outputs.append(runner(sample.inputs))
        except UnsupportedError as error:
            error.add_note(f"while running `{source.label}`")
            raise
    calls = [_call(runner, sample.inputs) for runner in runners]
    count = _num_rounds(calls) if rounds is None else rounds
    seconds = interleaved(calls, count, min_turn_s=MIN_TURN_S)
    runs = tuple(
        Run(
            source.label, times, ratio(times, seconds[0]), source.num_bytes,
            max((diff.max_rel for diff in compare_outputs(outputs[0], own)), default=0.0),
        )
        for source, times, own in zip(sources, seconds, outputs, strict=True)
    )  # fmt: skip
    return Bench(runs, sample.binding, threads)


@dataclass(frozen=True, slots=True)
class OrtLatency:
    """Measures modules on ONNX Runtime for passes (`LatencySource`).

    Args:
        target: What they are emitted for.
        dims: Sizes of the sample.
        seed: Seed of its values.
    """

    target: str = "ort-cpu"
    dims: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def ratio(self, before: Module, after: Module) -> float:
        """Returns the latency of `after` over that of `before`, each legalized and emitted."""
        sources = [
            Source(self._legalized(module), "", None, None, None) for module in (before, after)
        ]
        measured = bench(sources, dims=self.dims, seed=self.seed, rounds=_SEARCH_ROUNDS)
        return measured.runs[1].ratio.median

    def _legalized(self, module: Module) -> Module:
        copy = module.clone()
        tables = legalizers(user_tables())
        ctx = Context(target=self.target, legalizers=tables, dims=self.dims)
        for item in with_legalization([], self.target, None):
            item.run(copy, ctx)
        return copy


def _typical_sample(
    module: Module, runner: OrtRunner, dims: Mapping[str, int], seed: int
) -> Sample:
    """Returns a generated sample: batch 1, the largest usual sizes that run elsewhere."""
    leading = leading_symbols(module)
    for size in (*_TYPICAL_SIZES, None):
        wanted = {
            symbol.name: clamp_size(1 if symbol.name in leading else size, symbol)
            for symbol in input_symbols(module)
            if size is not None
        }
        try:
            return generate_samples(
                module, accepts(runner), dims={**wanted, **dims}, seed=seed, max_samples=1
            )[0]
        except UnsupportedError:
            if size is None:
                raise
    raise AssertionError("unreachable")


def session_of(source: Source, threads: int) -> OrtRunner:
    """Returns a session over the source's own file, or over what it is emitted as."""
    emitters = source.extensions.onnx_emitters
    model = source.file or to_proto(source.module, profile="ort-cpu", families=emitters)
    return OrtRunner(model, num_threads=threads)


def _call(runner: OrtRunner, inputs: Mapping[str, Any]) -> Callable[[], object]:
    session = runner.session
    feeds = {name: inputs[name] for name in runner.input_names}
    if all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in feeds.values()):
        return lambda: session.run(None, feeds)
    return lambda: runner(inputs)  # it converts types that numpy has not


def _num_rounds(calls: Sequence[Callable[[], object]]) -> int:
    start = time.perf_counter()
    for call in calls:
        call()
    return _FEW_ROUNDS if time.perf_counter() - start > _LONG_ROUND_S else MIN_ROUNDS
