"""Takes architectures of timm through capture, ONNX Runtime and generated PyTorch, one a line.

Reads names from stdin and prints one JSON document for each: a process of its own, so that a model
that takes too long or too much memory ends alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, timm cannot be imported

import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402

from benchmarks.torch_timm_names import OPTIONS  # noqa: E402
from regraft import apply, to_torch  # noqa: E402
from regraft.backends.onnx import save_onnx  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402
from regraft.frontends.torch.capture import Capture, capture  # noqa: E402
from regraft.ir.errors import RegraftError  # noqa: E402
from regraft.ir.module import Module  # noqa: E402
from regraft.passes.check.module_check import check_module  # noqa: E402
from regraft.passes.check.runners import Runner  # noqa: E402
from regraft.passes.check.samples import Sample  # noqa: E402
from regraft.passes.check.second_look import SecondLook  # noqa: E402

SIDES = (64, 84, 96, 128, 192, 256)
"""Sides of images tried before the model's own: many architectures take any that strides divide."""

BATCHES = (2, 3)
SEEDS = (0, 1, 2)
CLASSES = 10
SMALL = 1e-3
"""Parameters that start below this switch their branch off: heads, gates, scales of layers."""


def attempt(name: str) -> dict[str, Any]:
    """Returns what became of an architecture: `stage` is where it ended, `done` is the end."""
    torch.manual_seed(0)
    net, side = _runnable(name)
    row: dict[str, Any] = {
        "name": name, "side": side, "parameters": sum(p.numel() for p in net.parameters()),
    }  # fmt: skip
    example = torch.randn(2, 3, side, side)
    start = time.perf_counter()
    try:
        captured = capture(net, (example,), dynamic_shapes=({0: "batch"},))
    except Exception as error:
        return row | {"stage": "capture", "error": _text(error), "exports": _exports(net, example)}
    row["capture_s"] = round(time.perf_counter() - start, 2)
    module = captured.module.clone()
    stage = "canonicalize"
    try:
        apply(module, "canonicalize", check="off")
        row["nodes"] = sum(1 for _ in module.graph.walk())
        samples = _samples(captured, side)
        for stage, runner in _runners(module, captured):
            row[stage] = _compared(captured, module, runner, samples)
            if not row[stage]["ok"]:
                return row | {"stage": stage, "error": row[stage]["reason"]}
    except Exception as error:
        return row | {"stage": stage, "error": _text(error)}
    return row | {"stage": "done"}


def _runnable(name: str) -> tuple[torch.nn.Module, int]:
    """Returns a model with random weights, and the smallest side of images that it takes."""
    native = timm.get_pretrained_cfg(name, allow_unregistered=True).input_size[-1]
    plain: torch.nn.Module | None = None
    options = {"num_classes": CLASSES, **OPTIONS.get(name, {})}
    for side in (*(side for side in SIDES if side < native), native):
        try:
            net = timm.create_model(name, pretrained=False, img_size=side, **options)
        except TypeError:  # no such option: any size that it runs
            net = plain = plain or timm.create_model(name, pretrained=False, **options)
        except (AssertionError, RuntimeError, ValueError):
            if side == native:
                raise
            continue
        _wake(net.eval())
        try:
            with torch.no_grad():
                net(torch.randn(2, 3, side, side))
        except (AssertionError, RuntimeError, ValueError):
            if side == native:
                raise
            continue
        return net, side
    raise AssertionError("the native size returns or raises")


def _wake(net: torch.nn.Module) -> None:
    """Makes constant weights and statistics random: a lost or swapped one would not show."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1 and parameter.abs().max() < SMALL:
                parameter.normal_(std=0.02)
            elif parameter.dim() < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, statistic in net.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(std=0.1)
            elif name.endswith("running_var"):
                statistic.uniform_(0.5, 1.5)


def _samples(captured: Capture, side: int) -> list[Sample]:
    (name,) = captured.imported.inputs.values()
    samples = []
    for seed in SEEDS:
        batch = BATCHES[seed % len(BATCHES)]
        pixels = np.random.default_rng(seed).standard_normal((batch, 3, side, side), np.float32)
        samples.append(Sample({name: pixels}, {"batch": batch}, "normal"))
    return samples


def _runners(module: Module, captured: Capture) -> Iterator[tuple[str, Runner]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(module, path)
        yield "onnxruntime", OrtRunner(path)
    net = to_torch(module)
    names = module.graph.output_names

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            result = net(*(torch.from_numpy(array) for array in inputs.values()))
        found = result if isinstance(result, tuple) else (result,)
        return {name: item.numpy() for name, item in zip(names, found, strict=True)}

    yield "torch", run


def _compared(
    captured: Capture, module: Module, runner: Runner, samples: list[Sample]
) -> dict[str, Any]:
    report = check_module(
        captured.runner(True), captured.runner(False), runner, samples,
        look=SecondLook(captured.module, module),
    )  # fmt: skip
    worst = max(report.outputs, key=lambda diff: (not diff.ok, diff.max_rel))
    ok = report.ok and report.verified == "module"
    reason = worst.reason if not report.ok else "" if ok else report.verified
    return {"ok": ok, "max_rel": float(f"{worst.max_rel:.3g}"), "reason": reason}


def _exports(net: torch.nn.Module, example: torch.Tensor) -> str:
    """Returns what `torch.export` itself says: `yes`, or its reason."""
    try:
        torch.export.export(
            net, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        )
    except Exception as error:
        return _text(error)
    return "yes"


def _text(error: Exception) -> str:
    shown = error.message if isinstance(error, RegraftError) else str(error)
    return f"{type(error).__name__}: {shown}"[:2000]


def main() -> None:
    """Answers every name that comes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # deprecations between timm and PyTorch
    for line in sys.stdin:
        name = line.strip()
        start = time.perf_counter()
        try:
            row = attempt(name)
        except Exception as error:
            row = {"name": name, "stage": "build", "error": _text(error)}
        row["seconds"] = round(time.perf_counter() - start, 1)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
