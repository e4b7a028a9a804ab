"""The module check of a conversion: which runners compare source and result, under which budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import CheckError, UnsupportedError
from regraft.ir.module import Module
from regraft.passes.check.module_check import CheckReport, Runner, check_module
from regraft.passes.check.runners import (
    EvalRunner,
    accepts,
    largest_weight_bytes,
    total_weight_bytes,
    unevaluable,
)
from regraft.passes.check.samples import Sample, generate_samples
from regraft.passes.protocol import Contract
from regraft.sources import Source

DEFAULT_BUDGET_BYTES = 3 << 30
"""Above this, models are not loaded into a runtime: the evaluator streams the weights."""

RUNTIME_COPIES = 3.0
"""A runtime session may hold the file, its own copy and packed weights."""

_STREAM_COPIES = 1.0
"""Streaming holds at most the largest weight (of a matrix product only a few blocks of it)."""


class _Remembered:
    """A runner that keeps its last answer, for inputs that are asked for twice."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.inputs: Mapping[str, Any] | None = None
        self.outputs: Mapping[str, Any] = {}

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if inputs is not self.inputs:
            self.outputs = self.runner(inputs)
            self.inputs = inputs
        return self.outputs


class Checker:
    """Compares a conversion's result with its source.

    Args:
        source: The source; its module is cloned before passes change it.
        dims: Sizes that the user fixed for generated samples.
        seed: Seed of generated samples.
        max_memory_bytes: Working-memory budget; default: most of what is free.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
    """

    def __init__(
        self,
        source: Source,
        *,
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        max_memory_bytes: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        self.original = source.module.clone()
        self.dims = dims
        self.seed = seed
        self.rtol = rtol
        self.atol = atol
        self.reason = ""
        self.streams = False
        self.samples: Sequence[Sample] = ()
        self._reference: Runner | None = None
        self._plain: Runner | None = None
        free = int(psutil.virtual_memory().available * 0.8)
        self._choose_runners(source, max_memory_bytes or min(free, DEFAULT_BUDGET_BYTES))

    def _choose_runners(self, source: Source, budget: int) -> None:
        fits = total_weight_bytes(self.original) * RUNTIME_COPIES <= budget
        if source.runner is not None and fits:
            try:
                self._reference = source.runner(True)
                self._plain = source.runner(False)
            except UnsupportedError as error:
                self.reason = error.message
            else:
                return
        missing = unevaluable(self.original)
        if missing:
            detail = self.reason or "the weights do not fit the memory budget"
            self.reason = f"{detail}; no numpy meaning for {', '.join(missing[:3])}"
            return
        if largest_weight_bytes(self.original) * _STREAM_COPIES > budget:
            self.reason = "memory"
            return
        self.streams = not fits
        self.reason = ""
        self._reference = EvalRunner(self.original)
        self._plain = None if self.streams else EvalRunner(self.original, oracle=True)

    def prepare(self, given: Sequence[Sample]) -> None:
        """Takes the user's samples or generates some; records why when neither can be run."""
        if self._reference is None:
            return
        if self.streams:
            self._reference = _Remembered(self._reference)
        runs = accepts(self._reference)
        if given:
            self.samples = [sample for sample in given if runs(sample.inputs)]
            if not self.samples:
                self.reason = "the source runs on none of the given samples"
            return
        # a run that streams the weights costs seconds: one sample, and no search for a second size
        limit = 1 if self.streams else None
        try:
            self.samples = generate_samples(
                self.original, runs, dims=self.dims, seed=self.seed, max_samples=limit
            )
        except UnsupportedError as error:
            self.reason = error.message

    @property
    def can_check(self) -> bool:
        """Whether there is a reference and a sample."""
        return self._reference is not None and bool(self.samples)

    def compare(self, module: Module, emitted: Path | None, contract: Contract) -> CheckReport:
        """Compares the emitted file (the module itself when streaming or nothing was emitted).

        Raises:
            CheckError: When the result cannot run where the source could.
        """
        if self._reference is None or not self.samples:
            return CheckReport(f"no ({self.reason})", True)
        make: Callable[[], Runner] = lambda: EvalRunner(module)  # noqa: E731
        if emitted is not None and not self.streams:
            make = lambda: OrtRunner(emitted)  # noqa: E731
        try:
            result = make()
            return check_module(
                self._reference, self._plain, result, self.samples,
                contract=contract, rtol=self.rtol, atol=self.atol,
                verified="module",
            )  # fmt: skip
        except UnsupportedError as error:
            if emitted is not None and isinstance(self._reference, EvalRunner):
                # the runtime cannot take the source's operators either
                return check_module(
                    self._reference, self._plain, EvalRunner(module), self.samples,
                    contract=contract, rtol=self.rtol, atol=self.atol,
                )  # fmt: skip
            raise CheckError(f"the source runs, the result does not: {error.message}") from error
