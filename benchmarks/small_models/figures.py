"""How good the small models are: the measurements of `python -m benchmarks.small_models`."""

import math
from collections.abc import Iterator
from functools import partial

from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.small_models import KINDS, SmallModel, digits, get
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.torch.net_runner import NetRunner
from regraft.passes import quality
from regraft.passes.check.runners import Runner

_MAX_CPU_S = 300.0
_PERPLEXITY = 4.2
"""1.44 nats per character; a model without context has 22, the frequencies of the characters."""
_COPY = 0.99
_CNN = 0.97
_VIT = 0.93
_APART = 1e-3
"""Between ONNX Runtime and PyTorch, of perplexity or accuracy: some logits are all but equal."""


def _figure(name: str, model: SmallModel, runner: Runner) -> float:
    if name == "char-lm":
        return quality.perplexity(runner, model.held_out()).perplexity
    return quality.accuracy(runner, model.held_out(), next_token=name == "copy-lm").accuracy


def _measured(name: str, settings: Settings) -> Iterator[Row]:
    if name.startswith("digit"):
        digits.fetch()
    model = get(name)
    size = sum(p.numel() for p in model.net().parameters())
    found = _figure(name, model, OrtRunner(to_proto(model.module())))
    note = f"{size / 1e6:.2f} M parameters, {model.kind.schedule.steps} steps"
    if name == "char-lm":
        yield at_most("char-lm: perplexity per character, held-out files", found, _PERPLEXITY, "",
                      f"{note}, {math.log(found):.3f} nats")  # fmt: skip
    else:
        bar = {"copy-lm": _COPY, "digit-cnn": _CNN, "digit-vit": _VIT}[name]
        what = "copied letters" if name == "copy-lm" else "held-out digits"
        yield at_least(f"{name}: accuracy, {what}", 100 * found, 100 * bar, "%", note)
    apart = abs(_figure(name, model, NetRunner(model.net())) / found - 1)
    yield at_most(f"{name}: ONNX Runtime against PyTorch, relative", apart, _APART, "")
    yield at_most(f"{name}: processor time of training", model.cpu_s, _MAX_CPU_S, "s")
    yield shown(f"{name}: loss of the last batch", model.loss, "nats")


MEASUREMENTS: tuple[Measurement, ...] = tuple(
    Measurement(name, f"trains {name} and measures it", partial(_measured, name)) for name in KINDS
)
