"""`compare`: two models on the same samples, and the first value at which they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.checking import RUNTIME_COPIES
from regraft.ir.constants import is_constant
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.check.compare import compare_outputs
from regraft.passes.check.module_check import CheckReport, check_module
from regraft.passes.check.runners import (
    EvalRunner,
    Runner,
    accepts,
    lazily,
    total_weight_bytes,
    unevaluable,
)
from regraft.passes.check.samples import Sample, generate_samples
from regraft.passes.check.second_look import second_look
from regraft.samples import bind_samples, check_dims
from regraft.sources import Source

_MAX_KEPT_ELEMENTS = 1 << 24
"""Intermediate values of the first model kept for the search of the first divergence."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found, and the samples it used."""

    report: CheckReport
    samples: Sequence[Sample]


def compare_sources(
    a: Source,
    b: Source,
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    max_memory_bytes: int | None = None,
) -> Comparison:
    """Compares the outputs that the first model has.

    Args:
        a: The reference.
        b: The other model.
        samples: The user's samples; default: generated ones that `a` runs.
        dims: Sizes of generated samples.
        seed: Seed of generated samples.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        max_memory_bytes: Above it, a model is not loaded into a runtime: weights are streamed.

    Raises:
        InputError: When the second model takes other inputs or lacks an output.
        UnsupportedError: When one of them can be run nowhere, or no sample can be made.
    """
    check_interfaces(a.module, b.module)
    run_a, run_b = make_runner(a, max_memory_bytes), make_runner(b, max_memory_bytes)
    if samples:
        used = bind_samples(a.module, samples)
    else:
        check_dims(a.module, dims or {})
        used = generate_samples(a.module, accepts(run_a), dims=dims, seed=seed)
    plain = None
    if a.runner is not None and isinstance(run_a, OrtRunner):
        plain = lazily(partial(a.runner, False))
    fits = max_memory_bytes is None or _fits(a.module, max_memory_bytes)
    look = second_look(a.module, b.module) if fits else None
    report = check_module(
        run_a, plain, run_b, used, rtol=rtol, atol=atol, verified="compared", look=look
    )
    return Comparison(report, used)


def make_runner(source: Source, max_memory_bytes: int | None = None) -> Runner:
    """Returns the best runner of a source: its runtime, else the evaluator.

    Raises:
        UnsupportedError: When neither can run it.
    """
    fits = max_memory_bytes is None or _fits(source.module, max_memory_bytes)
    failure = "its weights do not fit --max-memory"
    if fits:
        try:
            return source.runner(True) if source.runner else _emitted(source)
        except UnsupportedError as error:
            failure = error.message
    missing = unevaluable(source.module)
    if missing:
        raise UnsupportedError(
            f"`{source.label}` cannot be run: {failure}; "
            f"no numpy meaning for {', '.join(missing[:3])}"
        )
    return EvalRunner(source.module)


def _emitted(source: Source) -> Runner:
    return OrtRunner(to_proto(source.module, families=source.extensions.onnx_emitters))


def _fits(module: Module, max_memory_bytes: int) -> bool:
    return total_weight_bytes(module) * RUNTIME_COPIES <= max_memory_bytes


def check_interfaces(a: Module, b: Module) -> None:
    """Checks that two models take the same inputs and that the second has the first's outputs.

    Raises:
        InputError: Naming what differs.
    """
    check_inputs(a, b)
    missing = [name for name in a.graph.output_names if name not in b.graph.output_names]
    if missing:
        raise InputError(
            f"the second model has no output `{missing[0]}`",
            hint=f"it has {', '.join(map(str, b.graph.output_names))}",
        )


def check_inputs(a: Module, b: Module) -> None:
    """Checks that two models take the same inputs.

    Raises:
        InputError: Naming what differs.
    """
    inputs_a, inputs_b = ({str(v.name) for v in m.graph.inputs} for m in (a, b))
    if inputs_a != inputs_b:
        raise InputError(
            f"the models take different inputs: {', '.join(sorted(inputs_a))} and "
            f"{', '.join(sorted(inputs_b))}",
            hint="models are compared on the same samples: rename the inputs of one",
        )


def first_divergence(a: Module, b: Module, sample: Sample) -> dict[str, Any] | None:
    """Returns the first value, in order of the second model, that both name and that differs.

    Both models run in the numpy evaluator; None when all common values agree or when one of them
    cannot be evaluated.
    """
    if unevaluable(a) or unevaluable(b):
        return None
    kept: dict[str, Any] = {}
    budget = _MAX_KEPT_ELEMENTS

    def keep(value: Value, array: Any) -> None:
        nonlocal budget
        if value.owner is not a.graph or not value.name or not isinstance(array, np.ndarray):
            return
        if is_constant(value):
            return  # a result that differs says more than the weight behind it
        if array.size <= budget:
            kept[value.name] = array
            budget -= array.size

    evaluate(a, sample.inputs, observe=keep)
    found: list[dict[str, Any]] = []

    def look(value: Value, array: Any) -> None:
        if found or value.name not in kept or value.owner is not b.graph:
            return
        (diff,) = compare_outputs({value.name: kept[value.name]}, {value.name: array})
        if not diff.ok:
            producer = value.producer
            found.append(
                {
                    "value": value.name,
                    "operator": producer.op.name if producer else "input",
                    "reason": diff.reason,
                    "max_abs": diff.max_abs,
                }
            )

    evaluate(b, sample.inputs, observe=look)
    return found[0] if found else None
