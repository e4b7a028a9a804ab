"""`compare`: two models on the same samples, and the first value at which they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.check.compare import compare_outputs
from regraft.passes.check.module_check import CheckReport, Runner, check_module
from regraft.passes.check.runners import EvalRunner, unevaluable
from regraft.passes.check.samples import Sample, generate_samples
from regraft.samples import bind_samples
from regraft.sources import Source

_MAX_KEPT_ELEMENTS = 1 << 24
"""Intermediate values of the first model kept for the search of the first divergence."""


def compare_sources(
    a: Source,
    b: Source,
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
) -> CheckReport:
    """Compares the outputs that the first model has.

    Raises:
        InputError: When the second model takes other inputs or lacks an output.
        UnsupportedError: When one of them can be run nowhere, or no sample can be made.
    """
    check_interfaces(a.module, b.module)
    run_a, run_b = make_runner(a), make_runner(b)
    used = choose_samples(a.module, run_a, samples, dims, seed)
    plain = a.runner(False) if a.runner is not None and isinstance(run_a, OrtRunner) else None
    return check_module(run_a, plain, run_b, used, rtol=rtol, atol=atol, verified="compared")


def choose_samples(
    module: Module,
    runner: Runner,
    samples: Sequence[Mapping[str, Any]],
    dims: Mapping[str, int] | None,
    seed: int,
) -> list[Sample]:
    """Returns the user's samples, or generated ones that the model runs."""
    if samples:
        return bind_samples(module, samples)

    def runs(inputs: Mapping[str, Any]) -> bool:
        try:
            runner(inputs)
        except (UnsupportedError, ValueError, IndexError):
            return False
        return True

    return generate_samples(module, runs, dims=dims, seed=seed)


def make_runner(source: Source) -> Runner:
    """Returns the best runner of a source: its runtime, else the evaluator.

    Raises:
        UnsupportedError: When neither can run it.
    """
    failure = ""
    try:
        return source.runner(True) if source.runner else OrtRunner(to_proto(source.module))
    except UnsupportedError as error:
        failure = error.message
    missing = unevaluable(source.module)
    if missing:
        raise UnsupportedError(
            f"`{source.label}` cannot be run: {failure}; no numpy meaning for {', '.join(missing[:3])}"
        )
    return EvalRunner(source.module)


def check_interfaces(a: Module, b: Module) -> None:
    """Checks that two models take the same inputs and that the second has the first's outputs.

    Raises:
        InputError: Naming what differs.
    """
    inputs_a, inputs_b = ({str(v.name) for v in m.graph.inputs} for m in (a, b))
    if inputs_a != inputs_b:
        raise InputError(
            f"the models take different inputs: {', '.join(sorted(inputs_a))} and "
            f"{', '.join(sorted(inputs_b))}"
        )
    missing = [name for name in a.graph.output_names if name not in b.graph.output_names]
    if missing:
        raise InputError(f"the second model has no output `{missing[0]}`")


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
        if value.name and isinstance(array, np.ndarray) and array.size <= budget:
            kept[value.name] = array
            budget -= array.size

    evaluate(a, sample.inputs, observe=keep)
    found: list[dict[str, Any]] = []

    def look(value: Value, array: Any) -> None:
        if found or value.name not in kept or not isinstance(array, np.ndarray):
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
