"""Prunes one model to half of its FLOPs and checks the result: ours.

The result is compared with the dense model whose dropped positions are zeroed wherever they stand
and whose normalizations count what is kept (`tests/passes/pruning/masked.py`, which shares no code
with the slicer), and FLOPs are counted once more by PyTorch's own counter on what runs.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.prune_subjects import Subject, subject
from regraft.ir.errors import RegraftError, TargetError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.cleanup import Canonicalize
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.cleanup.folding import fold_trained
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.cost import cost_model
from tests.passes.pruning.masked import run_masked

LIMIT_S = 60
"""Seconds of processor time that pruning may take, ours with the capture; one thread."""

TARGET = 0.5


class PastLimitError(BaseException):
    """Pruning took longer than a model has; tools that catch every `Exception` do not catch it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `PastLimitError` within the block when it takes too long; main thread only.

    The time is that of the processor, so that what else runs on the machine decides nothing.
    """

    def stop(*_: object) -> None:
        raise PastLimitError(f"ran past {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def count_flops(run: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the FLOPs of a call by PyTorch's counter, and what it returns.

    The counter sees products and convolutions; attention is counted as its products.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = run()
    return float(counter.get_total_flops()), outputs


def measure_ours(name: str) -> dict[str, Any]:
    """Returns what became of a model: `stage` is where it ended, `done` is the end."""
    import torch

    warnings.simplefilter("ignore")  # deprecations between the libraries and PyTorch
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": name, "stage": "build"}
    try:
        _go(row, subject(name))
    except (PastLimitError, Exception) as error:  # every failure is a row, with its stage
        shown = error.message if isinstance(error, RegraftError) else str(error)
        hint = getattr(error, "hint", None)
        row["reason"] = f"{type(error).__name__}: {shown}"[:1500] + (f"; {hint}" if hint else "")
    return row


def _go(row: dict[str, Any], it: Subject) -> None:
    from regraft.frontends.torch.capture import capture

    row["parameters"] = sum(p.numel() for p in it.net.parameters())
    start = time.process_time()
    with limited(LIMIT_S):
        row["stage"] = "capture"
        captured = capture(it.net, it.args, {**it.kwargs, **it.fixed}, dynamic_shapes=it.dynamic)
        row["capture_s"] = round(time.process_time() - start, 2)
        row["stage"] = "prune"
        module = captured.module
        for item in (Canonicalize(), Fuse(), Canonicalize()):
            item.run(module, Context(dims=it.sizes))
        row["nodes"] = sum(1 for _ in module.graph.walk())
        # as `prune` begins: plans name anonymous values by their number, and what is folded in f32
        # would differ from the masked model in f64
        fold_trained(module)
        drop_dead_code(module)
        dense = module.clone()
        plan = _prune(row, module, it.sizes)
    row["seconds"] = round(time.process_time() - start, 2)
    inputs = {name: it.sample[idx].numpy() for idx, name in captured.imported.inputs.items()}
    row["stage"] = "run"
    before, after = captured.runner(True)(inputs), _run(module, inputs)[1]
    row["shape"] = _shapes(before) == _shapes(after)
    if not row["shape"]:
        row["reason"] = f"shapes {_shapes(after)}, were {_shapes(before)}"[:500]
        return
    row["stage"] = "count"
    row["counted"] = _counted(dense, inputs, it.sizes)
    row["stage"] = "compare"
    expected = run_masked(Coupling(dense), plan, inputs)
    row["error"] = distance(expected, evaluate(module, inputs, oracle=True))
    row["error_f32"] = distance(expected, after)
    row["rounding_f32"] = distance(evaluate(dense, inputs, oracle=True), before)
    row["stage"] = "done"


def _prune(row: dict[str, Any], module: Module, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Prunes to the target, or, where pins forbid it, as far as they allow."""
    start = time.process_time()
    target = TARGET
    try:
        result = Prune(f"flops:{TARGET}").run(module, Context(dims=sizes))
    except TargetError as error:
        row["limited"] = f"{error.message.removeprefix('pass `prune`: ')}; {error.hint}"
        coupling = Coupling(module)
        cost = cost_model(coupling, "flops", sizes)
        full = np.array([group.size for group in coupling.groups], np.int64)
        target = row["least"] = cost.total(np.ones_like(full)) / cost.total(full)
        if target <= TARGET:
            raise
        result = Prune(f"flops:{target!r}", min_keep=0.0).run(module, Context(dims=sizes))
    row["prune_s"] = round(time.process_time() - start, 2)
    row["groups"] = result.stats["groups"]
    row["pinned"] = result.stats["pinned"]
    row["achieved"] = float(result.stats["achieved"])
    row["met"] = abs(row["achieved"] / target - 1) <= 0.02
    plan: dict[str, Any] = result.decisions["plan"]
    return plan


def _run(module: Module, inputs: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Runs a module in PyTorch; returns FLOPs by PyTorch's counter, and the outputs by name."""
    from regraft import to_torch
    from regraft.backends.torch.executor import TorchRunner

    net = to_torch(module).requires_grad_(requires_grad=False)
    runner = TorchRunner(net, module)
    flops, outputs = count_flops(lambda: runner(inputs))
    return flops, outputs


def _counted(dense: Module, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> float | None:
    """Returns what half of the multiply-accumulates is by PyTorch's counter.

    That counter sees products only, so that they are what is asked for here. None where pins forbid
    it.
    """
    module = dense.clone()
    try:
        Prune(f"macs:{TARGET}").run(module, Context(dims=sizes))
    except TargetError:
        return None
    return _run(module, inputs)[0] / _run(dense, inputs)[0]


def _shapes(outputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(array) for name, array in outputs.items()}


def distance(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> float:
    """Returns the largest difference of outputs by name, relative to each; infinite for NaN."""
    worst = 0.0
    for name, array in expected.items():
        right, left = np.asarray(array, float), np.asarray(actual[name], float)
        if left.shape != right.shape or not np.isfinite(right).all():
            return float("inf")
        scale = max(float(np.abs(right).max(initial=0.0)), 1e-6)
        worst = max(worst, float(np.abs(left - right).max(initial=0.0)) / scale)
    return worst


if __name__ == "__main__":
    import json
    import sys

    for name in sys.argv[1:]:
        print(json.dumps(measure_ours(name)), flush=True)
