"""Architectures of `timm` over all its families, with random weights.

Every model is captured with a batch of 2, goes to ONNX Runtime and to the generated PyTorch module,
and is evaluated with batches of 3 and 1. `python -m benchmarks.torch_timm NAME …` measures some of
them and prints a line each, without keeping it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measurement, Row, Settings, at_least
from benchmarks.torch_coverage import rows_of, told
from benchmarks.torch_kept import asked, covered, kept_path
from benchmarks.torch_timm_names import ARCHITECTURES, NAMES, OPTIONS
from benchmarks.torch_worker import measured

if TYPE_CHECKING:
    import torch

WANTED = 150
"""Architectures that issue 4 asks for."""

LIMIT_S = 600.0
PACKAGES = ("torch", "timm", "onnxruntime")
SIDES = (64, 84, 96, 128, 192, 256)
"""Sides of images tried before the model's own: many architectures take any that strides divide."""

BATCHES = (3, 1)
CLASSES = 10
SMALL = 1e-3
"""Parameters that start below this switch their branch off: heads, gates, scales of layers."""

REFUSALS = (AssertionError, RuntimeError, ValueError)
"""What architectures raise about images of a size that they do not take."""


def measure_architecture(name: str) -> dict[str, Any]:
    """Returns what `compared` says about one architecture; runs in a process of its own."""
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()  # where torchvision is installed without them, timm cannot be imported
    import torch

    from benchmarks.torch_compared import compared, first_line, quiet

    quiet()
    torch.manual_seed(0)
    about: dict[str, Any] = {"sizes": len(BATCHES)}
    try:
        net, side = runnable(name)
    except Exception as error:  # an architecture that the library cannot build is a line too
        return {
            **about, "kind": "", "ok": False, "stage": "build", "reason": first_line(error),
            "refused": None, "overloads": {},
        }  # fmt: skip
    about["kind"] = f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M, {side} px"
    pixels = next(iter(inspect.signature(net.forward).parameters))
    draws = [torch.randn(batch, 3, side, side) for batch in BATCHES]
    samples = [({pixels: draw}, {"batch": len(draw)}) for draw in draws]
    example = {pixels: torch.randn(2, 3, side, side)}
    return {**about, **compared(net, example, {pixels: {0: "batch"}}, samples)}


def runnable(name: str) -> tuple[torch.nn.Module, int]:
    """Returns a model with random weights, and the smallest side of images that it takes."""
    import timm
    import torch

    native = timm.get_pretrained_cfg(name, allow_unregistered=True).input_size[-1]
    plain: torch.nn.Module | None = None
    options = {"num_classes": CLASSES, **OPTIONS.get(name, {})}
    for side in (*(side for side in SIDES if side < native), native):
        try:
            net = timm.create_model(name, pretrained=False, img_size=side, **options)
        except TypeError:  # no such option: any size that it runs
            net = plain = plain or timm.create_model(name, pretrained=False, **options)
        except REFUSALS:
            if side == native:
                raise
            continue
        _wake(net.eval())
        try:
            with torch.no_grad():
                net(torch.randn(2, 3, side, side))
        except REFUSALS:
            if side == native:
                raise
            continue
        return net, side
    raise AssertionError("the native size returns or raises")


def _wake(net: torch.nn.Module) -> None:
    """Makes constant weights and statistics random: a lost or swapped one would not show."""
    import torch

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


def architectures(settings: Settings) -> Iterator[Row]:
    """Every architecture in the table."""
    questions = {
        name: asked(repr((name, OPTIONS.get(name), SIDES, BATCHES)), PACKAGES) for name in NAMES
    }
    lines, num_measured = covered(
        kept_path("timm"), questions, measure_architecture, told, limit_s=LIMIT_S, settings=settings
    )  # fmt: skip
    families: Mapping[str, bool] = {
        family: any(lines[name].report["ok"] for name in names)
        for family, names in ARCHITECTURES.items()
    }
    yield at_least(
        "timm: families with equal outputs", sum(families.values()), len(families), "families",
        f"one or more architectures of each; {len(NAMES)} in all",
    )  # fmt: skip
    yield from rows_of("timm", lines, num_measured, WANTED)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "timm", "architectures of timm: captured, in ONNX Runtime, generated", architectures
    ),
)

if __name__ == "__main__":
    for each, answer in measured(sys.argv[1:] or NAMES, measure_architecture, limit_s=LIMIT_S):
        print(told(each, answer) if isinstance(answer, dict) else f"{each}: {answer}", flush=True)
