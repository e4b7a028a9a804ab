"""One PyTorch model the whole way: capture, canonicalize, ONNX Runtime, generated module."""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim

import regraft
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.torch.executor import TorchRunner
from regraft.frontends.torch.caches import register_caches
from regraft.frontends.torch.capture import Capture, capture
from regraft.frontends.torch.export import evaluation_mode, named_keywords
from regraft.ir.errors import RegraftError
from regraft.passes.check.module_check import check_module
from regraft.passes.check.samples import Sample
from regraft.passes.check.second_look import second_look

Axes = Mapping[str, Mapping[int, str]]
Inputs = Mapping[str, Any]


class DifferentError(AssertionError):
    """The outputs of what was made differ from those of the original."""


def quiet() -> None:
    """Silences what PyTorch and its libraries tell; one thread, as every figure is measured."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)


def plain_export(net: Any, kwargs: Inputs, axes: Axes) -> torch.export.ExportedProgram:
    """Returns what `torch.export.export` alone gives with these dynamic axes."""
    register_caches()
    shapes = {
        name: dict.fromkeys(axes.get(name, ()), Dim.DYNAMIC) if torch.is_tensor(item) else None
        for name, item in kwargs.items()
    }
    with evaluation_mode(net), named_keywords(net, kwargs):
        return torch.export.export(net, (), dict(kwargs), dynamic_shapes=shapes, strict=False)


def overloads(program: torch.export.ExportedProgram) -> Counter[str]:
    """Returns how often each overload is called, bodies of control flow included."""
    return Counter(
        str(node.target)
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    )


def compared(
    net: Any, kwargs: Inputs, axes: Axes, samples: Sequence[tuple[Inputs, Mapping[str, int]]]
) -> dict[str, Any]:
    """Takes a model the whole way and compares outputs at several sizes.

    Args:
        net: The model.
        kwargs: The example, by name of the argument.
        axes: Names of dynamic axes by argument.
        samples: Tensors by argument, and the sizes that they have.

    Returns:
        Seconds and what failed: `ok`, `stage`, `reason`; `refused`, why `torch.export` alone
        refuses, or None; `overloads` with counts; the largest relative differences.
    """
    report: dict[str, Any] = {"ok": False, "refused": None, "overloads": {}}
    start = time.perf_counter()
    try:
        report["overloads"] = overloads(plain_export(net, kwargs, axes))
    except Exception as error:  # whatever the export raises is what it refuses with
        report["refused"] = first_line(error)
    report["export_s"] = round(time.perf_counter() - start, 2)
    try:
        _go(report, net, kwargs, axes, samples)
    except Exception as error:  # every failure is a line of the table, with its stage
        report["reason"] = first_line(error)
        report["stage"] = report.get("stage", "capture")
        return report
    report["stage"] = "done"
    report["ok"] = True
    return report


def _go(
    report: dict[str, Any],
    net: Any,
    kwargs: Inputs,
    axes: Axes,
    samples: Sequence[tuple[Inputs, Mapping[str, int]]],
) -> None:
    report["stage"] = "capture"
    start = time.perf_counter()
    captured = capture(net, (), kwargs, dynamic_shapes=axes)
    report["capture_s"] = round(time.perf_counter() - start, 2)
    given = [_sample(captured, {**kwargs, **inputs}, sizes) for inputs, sizes in samples]
    report["stage"] = "canonicalize"
    source, module = captured.module.clone(), captured.module
    regraft.apply(module, "canonicalize", check="off")
    report["nodes"] = sum(1 for _ in module.graph.walk())

    def agrees(stage: str, make: Callable[[], Any]) -> None:
        report["stage"] = stage
        checked = check_module(
            captured.runner(True), captured.runner(False), make(), given,
            look=second_look(source, module),
        )  # fmt: skip
        report[stage] = max((diff.max_rel for diff in checked.outputs), default=0.0)
        worst = next((diff for diff in checked.outputs if not diff.ok), None)
        if worst is not None:
            raise DifferentError(f"`{worst.name}`: {worst.reason}")
        if checked.verified != "module":
            raise DifferentError(f"nothing was proved: {checked.verified}")

    agrees("onnx", lambda: OrtRunner(to_proto(module)))
    agrees("torch", lambda: TorchRunner(regraft.to_torch(module), module))


def _sample(captured: Capture, kwargs: Inputs, sizes: Mapping[str, int]) -> Sample:
    """Returns the sample of arrays by the names that the captured graph has for them."""
    leaves = torch.utils._pytree.tree_leaves(((), dict(kwargs)))
    names = captured.imported.inputs
    return Sample({name: leaves[i].numpy() for i, name in names.items()}, dict(sizes), "given")


def first_line(error: BaseException) -> str:
    """Returns the type of an error and what it says, in one line."""
    text = error.message if isinstance(error, RegraftError) else str(error)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[:3])[:400]}"
