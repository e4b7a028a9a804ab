"""The worked example of docs/moe.md: upcycle, train, export to ONNX Runtime and to `transformers`.

The character model becomes a mixture of experts that is redrawn in part, is trained with a balance
of loads, and is written as a file for ONNX Runtime and as a Mixtral folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.moe_small import TOPIC, Windows, nats
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.passes.recovery.data import Data
from regraft.passes.recovery.objective import Balance, CrossEntropy, RouterZ, Term
from regraft.passes.recovery.task import Schedule, Task

_VERSION = 1
_STEPS = 60
_FILE, _FOLDER = 1e-5, 1e-5
"""Sums of a few hundred products through six layers, in f32, against our evaluation."""

PASSES = "canonicalize,fuse,upcycle-ffn{experts=4,top-k=2,method=drop,ratio=0.25}"


@dataclass(frozen=True, slots=True)
class Example:
    """What came of it.

    Args:
        module: The trained module.
        losses: At every step.
        file_error: Largest relative difference of ONNX Runtime's logits.
        folder_error: The same of the loaded folder's.
        loaded: Class that the folder loads as.
        problems: What loading missed or did not expect.
    """

    module: Module
    losses: tuple[float, ...]
    file_error: float
    folder_error: float
    loaded: str
    problems: tuple[str, ...]


def example(source: Path, data: Data, steps: int, work: Path) -> Example:
    """Upcycles a folder of a decoder, trains it, writes it in both forms, and runs both.

    Args:
        source: The dense folder.
        data: Batches of `input_ids`, `attention_mask` and `labels`.
        steps: Updates.
        work: An empty folder.
    """
    import torch
    import transformers as tf

    from regraft.backends.onnx.runtime import OrtRunner
    from regraft.backends.torch.training import TorchTrainer
    from regraft.huggingface_sources import save_folder

    module = regraft.load(source)
    regraft.apply(module, PASSES, check="off")
    routers = [node.inputs[1] for node in module.graph if node.op is moe.moe]
    terms = (
        Term(CrossEntropy(), student="logits", label="labels"),
        *(Term(Balance(2, "global"), student=each, weight=0.01) for each in routers if each),
        *(Term(RouterZ(), student=each, weight=0.001) for each in routers if each),
    )
    schedule = Schedule(steps, learning_rate=5e-4, batches_per_step=2)
    report = TorchTrainer(progress=False).distill(module, [], Task(terms, schedule), data)

    batch = next(iter(data.batches()))
    given = {name: np.asarray(batch[name][:2]) for name in ("input_ids", "attention_mask")}
    want = evaluate(module, given)["logits"]
    regraft.save(module, work / "moe.onnx")
    file = OrtRunner(work / "moe.onnx")(given)["logits"]
    (work / "folder").mkdir()
    save_folder(module, work / "folder")
    net, info = tf.AutoModelForCausalLM.from_pretrained(work / "folder", output_loading_info=True)
    with torch.no_grad():
        folder = net.eval()(torch.from_numpy(given["input_ids"])).logits.numpy()
    problems = tuple(f"{kind}: {keys}" for kind, keys in info.items() if keys)
    return Example(
        module, report.losses, _error(file, want), _error(folder, want), type(net).__name__,
        problems,
    )  # fmt: skip


def _error(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def _figures(settings: Settings) -> Figures:
    def make() -> Figures:
        from benchmarks.small_models import get

        model = get("char-lm", 0)
        with tempfile.TemporaryDirectory() as work:
            found = example(model.folder, Windows(11000, 8), _STEPS, Path(work))
        return {
            "file": found.file_error, "folder": found.folder_error, "loaded": found.loaded,
            "problems": list(found.problems), "losses": list(found.losses),
            "nats": nats(model, found.module),
        }  # fmt: skip

    return kept(TOPIC, "example", _VERSION, settings, make)


def _example(settings: Settings) -> Iterator[Row]:
    found = _figures(settings)
    losses = found["losses"]
    gain = float(np.mean(losses[:5]) - np.mean(losses[-5:]))
    yield at_least(f"example: what {_STEPS} steps take off the objective", gain, 0, "nats")
    yield shown("example: nats per character afterwards", found["nats"], "nats")
    yield at_most("example: ONNX Runtime", found["file"], _FILE, "relative")
    yield held("example: the folder loads strictly", not found["problems"], found["loaded"])
    yield at_most("example: the loaded folder", found["folder"], _FOLDER, "relative")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("example", "upcycle, train, write for ONNX Runtime and transformers", _example),
)
