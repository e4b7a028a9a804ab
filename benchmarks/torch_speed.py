"""Speed of capture and of the generated module: an encoder of 6 layers, a ViT of 12.

The encoder has the sizes of MiniLM-L6 (hidden 384, 12 heads), the ViT those of ViT-Ti/16 at 224
pixels with 12 layers. Capture, `torch.export.export` alone and `torch.onnx.export` take turns in
one process; so do the original and the generated module, eager and compiled. One thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.measure import Measurement, Row, Settings, shown
from benchmarks.timing import Ratio, interleaved, median, ratio
from regraft.timing import MIN_ROUNDS, MIN_TURN_S

MAX_OF_EXPORT = 1.25
MIN_BEFORE_ONNX_EXPORT = 1.5
MAX_OF_EAGER = 1.05


@dataclass(frozen=True, slots=True)
class Subject:
    """A model whose speed is measured.

    Attributes:
        label: What it is called in the table.
        net: The model in evaluation mode.
        example: Inputs by the name of the argument.
        axes: Dynamic axes by argument.
        timed: Inputs of the timed forward.
    """

    label: str
    net: Any
    example: dict[str, Any]
    axes: dict[str, dict[int, str]]
    timed: dict[str, Any]


def encoder() -> Subject:
    """Returns an encoder of 6 layers; timed at 4 texts of 128 tokens."""
    import torch

    from benchmarks.fixtures.capture_model import made

    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
    }
    net = made("BertModel", **sizes, num_hidden_layers=6)()
    axes = {0: "batch", 1: "sequence"}

    def tokens(batch: int, length: int) -> dict[str, Any]:
        ids = torch.arange(1000, 1000 + batch * length).reshape(batch, length)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return Subject(
        "encoder, 6 layers", net, tokens(2, 16), {"input_ids": axes, "attention_mask": axes},
        tokens(4, 128),
    )  # fmt: skip


def vit() -> Subject:
    """Returns a ViT of 12 layers; timed at 2 images."""
    import torch

    from benchmarks.fixtures.capture_model import made

    net = made(
        "ViTModel", hidden_size=192, intermediate_size=768, num_attention_heads=3,
        num_hidden_layers=12,
    )()  # fmt: skip
    pixels = {"pixel_values": torch.randn(2, 3, 224, 224)}
    return Subject("ViT, 12 layers", net, pixels, {"pixel_values": {0: "batch"}}, pixels)


def _subjects() -> tuple[Subject, ...]:
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    from benchmarks.torch_compared import quiet

    quiet()
    return encoder(), vit()


def _at_most(name: str, found: Ratio, bar: float, note: str) -> Row:
    return Row(name, found.median, "x", bar, "at most", f"{found}; {note}", judged=found.low)


def _at_least(name: str, found: Ratio, bar: float, note: str) -> Row:
    return Row(name, found.median, "x", bar, "at least", f"{found}; {note}", judged=found.high)


def capture_speed(settings: Settings) -> Iterable[Row]:
    """Capture against `torch.export.export` alone and against `torch.onnx.export`."""
    import torch

    from benchmarks.torch_compared import plain_export
    from regraft.frontends.torch.capture import capture

    for subject in _subjects():
        net, example, axes = subject.net, subject.example, subject.axes
        hints = {
            name: dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in example
        }  # fmt: skip

        calls = [
            partial(capture, net, (), example, dynamic_shapes=axes),
            partial(plain_export, net, example, axes),
            partial(
                torch.onnx.export, net, (), kwargs=example, dynamo=True, dynamic_shapes=hints,
                verbose=False,
            ),
        ]  # fmt: skip
        ours, export, onnx = interleaved(calls, settings.rounds)
        times = ", ".join(
            f"{what} {median(seconds):.2f} s"
            for what, seconds in (("capture", ours), ("export", export), ("ONNX export", onnx))
        )
        yield _at_most(
            f"{subject.label}: capture / torch.export.export", ratio(ours, export), MAX_OF_EXPORT,
            times,
        )  # fmt: skip
        yield _at_least(
            f"{subject.label}: torch.onnx.export / capture", ratio(onnx, ours),
            MIN_BEFORE_ONNX_EXPORT, times,
        )  # fmt: skip


def _largest(result: Any, expected: Any) -> float:
    from torch.utils import _pytree as pytree

    pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(expected), strict=False)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def forward_speed(settings: Settings) -> Iterable[Row]:
    """The generated module against the original, eager and compiled."""
    import torch

    import regraft
    from regraft.frontends.torch.capture import capture

    for subject in _subjects():
        module = capture(subject.net, (), subject.example, dynamic_shapes=subject.axes).module
        regraft.apply(module, "canonicalize", check="off")
        made = regraft.to_torch(module).eval()
        given = list(subject.timed.values())
        for form in ("eager", "compiled"):
            original, generated = subject.net, made
            if form == "compiled":
                original, generated = torch.compile(original), torch.compile(generated)
            with torch.no_grad():
                off = _largest(generated(*given), original(**subject.timed))
                calls = [partial(generated, *given), partial(original, **subject.timed)]
                seconds = interleaved(calls, MIN_ROUNDS, min_turn_s=MIN_TURN_S)
            times = " and ".join(f"{1e3 * median(each):.1f} ms" for each in seconds)
            yield _at_most(
                f"{subject.label}: generated / original, {form}", ratio(seconds[0], seconds[1]),
                MAX_OF_EAGER, f"{times}; largest difference {off:.1e}",
            )  # fmt: skip
        size = sum(weight.numel() for weight in subject.net.parameters())
        yield shown(f"{subject.label}: parameters", size / 1e6, "M")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "capture-speed", "capture against torch.export and torch.onnx.export", capture_speed
    ),
    Measurement("forward-speed", "generated module against the original", forward_speed),
)
