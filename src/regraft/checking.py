"""The module check of a conversion: which runners compare source and result, under which budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TypeVar

import psutil
from threadpoolctl import threadpool_limits

from regraft.backends.onnx import ort_quant_ops
from regraft.backends.onnx.runtime import OrtRunner
from regraft.emission import written_runner
from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import CheckError, UnsupportedError
from regraft.ir.evaluate import bind_inputs
from regraft.ir.growth import Growth
from regraft.ir.module import Module
from regraft.ir.ops import quant
from regraft.ir.types import DType
from regraft.passes.check.module_check import CheckReport, check_module
from regraft.passes.check.rounding import (
    RetypedRunner,
    WorstRunner,
    depth_bound,
    first_beyond,
    plain_for,
)
from regraft.passes.check.runners import (
    EvalRunner,
    Runner,
    accepts,
    largest_weight_bytes,
    lazily,
    total_weight_bytes,
    unevaluable,
)
from regraft.passes.check.samples import STYLES, Sample, generate_samples
from regraft.passes.check.second_look import second_look
from regraft.passes.protocol import Contract, Lossy, Rounded, Within
from regraft.sources import Source

T = TypeVar("T")

_ROUNDED_PRODUCTS = (
    "leaves out that ONNX Runtime rounds what it multiplies by matrices of few bits to 8 bits: "
    "with it outputs differ by {:.2g} of the largest element"
)

DEFAULT_BUDGET_BYTES = 3 << 30
"""Above this, models are not loaded into a runtime: the evaluator streams the weights."""

RUNTIME_COPIES = 3.0
"""A runtime session may hold the file, its own copy and packed weights."""

_STREAM_COPIES = 1.0
"""Streaming holds at most the largest weight (of a matrix product only a few blocks of it)."""


class _OneBlasThread:
    """Keeps BLAS at one thread while anybody is inside; who comes first may leave first.

    A product of few rows waits for memory: further threads of BLAS only spin beside it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_inside = 0
        self._limits: threadpool_limits | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._limits = threadpool_limits(1, "blas")
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside and self._limits is not None:
                self._limits.restore_original_limits()


def _beside(work: Callable[[], T], name: str, limits: _OneBlasThread) -> Future[T]:
    """Runs work in a daemon thread: nobody waits for it when what it runs beside fails."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            with limits:
                result = work()
        except BaseException as error:  # raised again by `result()`
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=run, name=name, daemon=True).start()
    return future


class _Remembered:
    """A runner that keeps its last answer, for inputs that are asked for twice."""

    def __init__(self, runner: Runner, limits: _OneBlasThread) -> None:
        self.runner = runner
        self.limits = limits
        self.inputs: Mapping[str, Any] | None = None
        self.outputs: Future[Mapping[str, Any]] = Future()

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Starts a run of which the answer will be asked for later."""
        self.inputs = inputs
        self.outputs = _beside(lambda: self.runner(inputs), "reference", self.limits)

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if inputs is not self.inputs:
            self.begin(inputs)
        return self.outputs.result()


class Checker:
    """Compares a conversion's result with its source.

    Args:
        source: The source; its module is cloned before passes change it.
        dims: Sizes that the user fixed for generated samples.
        seed: Seed of generated samples.
        max_memory_bytes: Working-memory budget; default: most of what is free.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        contract: What the passes promise, as far as it is known. The noise of rounding is measured
            in the evaluator: samples are then ones that it runs, too.
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
        contract: Contract | None = None,
    ) -> None:
        self.original = source.module.clone()
        self._example = source.example
        self._importers = source.extensions.onnx_importers
        self._limits = _OneBlasThread()
        self.evaluates = isinstance(contract, Rounded) and not unevaluable(self.original)
        self.dims = dims
        self.seed = seed
        self.rtol = rtol
        self.atol = atol
        self.reason = ""
        self.streams = False
        self._is_guess = False
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
                self._plain = lazily(partial(source.runner, False))
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

    def prepare(self, given: Sequence[Sample]) -> None:
        """Takes the user's samples or generates some; records why when neither can be run."""
        if self._reference is None:
            return
        if self.streams:
            self._reference = _Remembered(self._reference, self._limits)
        runs_at_all = self._accepts(self._reference, with_empty=True)
        if given:
            self.samples = [sample for sample in given if runs_at_all(sample.inputs)]
            if not self.samples:
                self.reason = "the source runs on none of the given samples"
            return
        if not isinstance(self._reference, _Remembered):
            self._generate(self._accepts(self._reference), runs_at_all)
            return
        # a run that streams the weights costs seconds: the passes work meanwhile, with the sample
        # that is tried first
        self._generate(lambda inputs: True)
        if self.samples:
            self._is_guess = True
            self._reference.begin(self.samples[0].inputs)

    def _accepts(
        self, reference: Runner, *, with_empty: bool = False
    ) -> Callable[[Mapping[str, Any]], bool]:
        runs = accepts(reference, with_empty=with_empty)
        if not self.evaluates or isinstance(reference, EvalRunner | _Remembered):
            return runs
        evaluated = accepts(EvalRunner(self.original), with_empty=with_empty)
        return lambda inputs: runs(inputs) and evaluated(inputs)

    def _generate(
        self,
        runs: Callable[[Mapping[str, Any]], bool],
        last_resort: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        # where the weights are streamed, one sample and no search for a second size
        self.samples, limit = (), 1 if self.streams else None
        try:
            self.samples = generate_samples(
                self.original, runs, dims=self.dims, seed=self.seed, max_samples=limit,
                last_resort=last_resort,
            )  # fmt: skip
        except UnsupportedError as error:
            self.reason = error.message
            self.samples = self._captured_with(runs)

    def _captured_with(self, runs: Callable[[Mapping[str, Any]], bool]) -> Sequence[Sample]:
        """Returns the inputs that the module was captured with, where they have the sizes asked."""
        inputs = self._example()
        if inputs is None or not runs(inputs):
            return ()
        binding = bind_inputs(self.original.graph, inputs)
        is_asked = all(binding.get(name, size) == size for name, size in (self.dims or {}).items())
        return (Sample(inputs, binding, STYLES[0]),) if is_asked else ()

    @property
    def can_check(self) -> bool:
        """Whether there is a reference and a sample."""
        return self._reference is not None and bool(self.samples)

    def start(
        self, module: Module, written: Path, growth: Growth | None, contract: Contract
    ) -> Future[CheckReport]:
        """Begins the check of a module that streams its weights, beside the emission.

        The check reads every weight and the emission writes it: both wait for memory and disk, and
        neither for the other. The thread is a daemon: nobody waits for it when the emission fails.

        Args:
            module: What is written.
            written: The model file; its weights may be on their way into a file beside it.
            growth: How far that file is; None where weights lie inside the model's file, or in
                another format: then the module itself is run.
            contract: What the passes promise.
        """
        module = module.clone()  # emission builds bodies in the graph while the check walks it

        def work() -> CheckReport:
            found = module if growth is None else self._read_back(module, written, growth)
            return self.compare(found, None, contract)

        return _beside(work, "check", self._limits)

    def _read_back(self, module: Module, written: Path, growth: Growth) -> Module:
        """Returns the module of the written file, or what was written where that has no meaning."""
        found = load_onnx(written, families=self._importers, growth=growth)
        return module if unevaluable(found) else found

    def compare_with(self, result: Runner, module: Module, contract: Contract) -> CheckReport:
        """Compares a module that is not written, by its runner."""
        return self._check(result, module, contract)

    def compare(self, module: Module, emitted: Path | None, contract: Contract) -> CheckReport:
        """Compares the emitted file (the module itself when streaming or nothing was emitted).

        Raises:
            CheckError: When the result cannot run where the source could.
        """
        if self._is_guess and self._reference is not None:
            runs = accepts(self._reference)
            if not runs(self.samples[0].inputs):
                self._generate(runs, accepts(self._reference, with_empty=True))
        if self._reference is None or not self.samples:
            return CheckReport(f"no ({self.reason})", True)
        if self.streams or _only_evaluator(module):
            emitted = None
        try:
            result = EvalRunner(module) if emitted is None else written_runner(emitted, module)
            report = self._check(result, module, contract)
        except UnsupportedError as error:
            if emitted is None or not isinstance(self._reference, EvalRunner):
                message = f"the source runs, the result does not: {error.message}"
                raise CheckError(message, hint=error.hint) from error
            # the runtime cannot take the source's operators either
            report = self._check(EvalRunner(module), module, contract)
        if not report.ok and (_has_few_bits(self.original) or _has_few_bits(module)):
            report = self._in_full(report, result, module, contract)
        if not report.ok and isinstance(contract, Rounded) and contract.dtype is not None:
            return self._with_place(report, module, contract.dtype)
        return report

    def _in_full(
        self, report: CheckReport, result: Runner, module: Module, contract: Contract
    ) -> CheckReport:
        """Compares again with products that the runtime does not round.

        It rounds what is multiplied by a matrix of few bits to 8 bits, or does not, by an attribute
        of the file, and where it makes such a product itself: that is no difference of the models.
        """
        reference, plain = self._reference, self._plain
        if not isinstance(reference, OrtRunner) and not isinstance(result, OrtRunner):
            return report
        if isinstance(reference, OrtRunner):
            self._reference = reference.in_full()
            self._plain = lazily(partial(reference.in_full, optimize=False))
        if isinstance(result, OrtRunner):
            result = result.in_full()
        found = self._check(result, module, contract)
        self._reference, self._plain = reference, plain
        if not found.ok:
            return report
        far = max(diff.max_rel for diff in report.outputs)
        return replace(found, note=_ROUNDED_PRODUCTS.format(far))

    def _check(self, result: Runner, module: Module, contract: Contract) -> CheckReport:
        if self._reference is None:
            raise AssertionError("there is nothing to compare with")
        plain, look = self._plain, None
        if not isinstance(contract, Rounded | Lossy) and not self.streams:
            look = second_look(self.original, module)
        if isinstance(contract, Rounded) and contract.dtype is not None:
            result = RetypedRunner(result, self.original, module)
            if isinstance(result.runner, OrtRunner) and not unevaluable(module):
                rounding = RetypedRunner(EvalRunner(module), self.original, module)
                result = WorstRunner(self._reference, rounding, result)
            if unevaluable(self.original):
                bound = depth_bound(self.original, contract.dtype)
                contract = Within(bound, "rounding along the longest path")
            else:
                plain = plain_for(contract, self.original, plain)
        return check_module(
            self._reference, plain, result, self.samples, contract=contract, rtol=self.rtol,
            atol=self.atol, verified="module", look=look,
        )  # fmt: skip

    def _with_place(self, report: CheckReport, module: Module, dtype: DType) -> CheckReport:
        """Adds to the report the first value that is further off than rounding explains."""
        if unevaluable(self.original) or unevaluable(module):
            return report
        place = first_beyond(self.original, module, self.samples[0].inputs, dtype)
        return report if place is None else replace(report, place=place)


def _only_evaluator(module: Module) -> bool:
    """Whether the runtime's CPU provider has no kernels for a type that the module computes in."""
    return any(value.dtype is DType.BF16 for node in module.graph.walk() for value in node.outputs)


def _has_few_bits(module: Module) -> bool:
    """Whether matrices are dequantized in blocks, whose products the runtime may round."""
    return any(
        node.op is ort_quant_ops.matmul_nbits
        or (node.op is quant.dequantize and node.attrs["block_size"])
        for node in module.graph.walk()
    )
