"""Captures a trained sentence encoder and compares with `torch.onnx.export` and ONNX Runtime.

`make demo-torch` installs what this needs. The encoder is all-MiniLM-L6-v2 with its tokenizer, in
the form of `transformers`. `regraft.convert` captures, rewrites, writes ONNX and checks it against
the original; `torch.onnx.export` writes the same encoder. Then latency of both in ONNX Runtime and
of the original, at four sentences (one thread, interleaved, median of the ratios of 50 rounds), and
the captured encoder as a PyTorch module that trains.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks import models, timing
from benchmarks.measure import MB, ROOT

ROUNDS = 50
WORK = ROOT / ".cache" / "demo"
SENTENCES = (
    "A compiler turns one program into another one that does the same.",
    "The other program is the same, but faster.",
    "It rained all day, and the match was called off.",
    "Nobody played: the ground was under water.",
)
TOLERANCE = 1e-5
"""Of the largest element: 6 layers of sums of 1536 terms in f32, in another order."""


def encoder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Returns the encoder of a folder, and the sentences as its inputs."""
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()  # where torchvision is installed without them, no model can be imported
    import torch
    import transformers

    torch.set_num_threads(1)
    net = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    return net, {name: tokens[name] for name in ("input_ids", "attention_mask")}


def export(net: Any, kwargs: Mapping[str, Any], path: Path) -> float:
    """Writes the encoder with `torch.onnx.export`; returns its seconds."""
    import torch

    axes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    start = time.perf_counter()
    torch.onnx.export(
        net, (), str(path), kwargs=dict(kwargs), dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=dict.fromkeys(kwargs, axes),
    )  # fmt: skip
    return time.perf_counter() - start


def convert(net: Any, kwargs: Mapping[str, Any], out: Path) -> tuple[float, bool]:
    """Writes the encoder with regraft; returns its seconds and whether the check passed."""
    import regraft

    axes = {0: "batch", 1: "sequence"}
    start = time.perf_counter()
    result = regraft.convert(
        net, out, kwargs=kwargs, dynamic_shapes=dict.fromkeys(kwargs, axes), force=True,
        samples=[{name: tensor.numpy() for name, tensor in kwargs.items()}],
    )  # fmt: skip
    return time.perf_counter() - start, result.check.ok


def train(net: Any, kwargs: Mapping[str, Any]) -> tuple[float, float]:
    """Trains the captured encoder on one pair for a few steps; returns the loss before and after.

    The first two sentences are to be alike: their vectors' cosine is to be 1.
    """
    import torch

    import regraft

    module = regraft.capture(
        net, kwargs=kwargs, dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in kwargs}
    )
    regraft.apply(module, "canonicalize,fuse", check="off")
    made = regraft.to_torch(module).train().requires_grad_()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-5)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        hidden = torch.utils._pytree.tree_leaves(made(*kwargs.values()))[0]
        mask = kwargs["attention_mask"].unsqueeze(-1)
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        loss = 1 - torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    regraft.read_back(module, made)
    regraft.save(module, WORK / "minilm-l6-trained.onnx")
    return losses[0], losses[-1]


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _off(outputs: list[Any], expected: list[Any]) -> float:
    pairs = zip(outputs, expected, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main() -> int:
    """Runs the demo; returns 1 when something differs from the original."""
    import torch

    console = Console(width=None if sys.stdout.isatty() else 140)
    net, kwargs = encoder(models.find(models.SENTENCE_ENCODER).parent)
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(WORK / "minilm-l6", ignore_errors=True)
    export_s = export(net, kwargs, WORK / "minilm-l6-export.onnx")
    convert_s, is_checked = convert(net, kwargs, WORK / "minilm-l6")
    files = [WORK / "minilm-l6-export.onnx", WORK / "minilm-l6" / "model.onnx"]
    sessions = [_session(path) for path in files]
    sample = {name: tensor.numpy() for name, tensor in kwargs.items()}
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in net(**kwargs).values()]
        seconds = timing.interleaved(
            [
                lambda: net(**kwargs),
                lambda: sessions[0].run(None, sample),
                lambda: sessions[1].run(None, sample),
            ],
            ROUNDS,
        )
    table = Table(
        "all-MiniLM-L6-v2", "written s", "size MB", "latency ms", "latency ratio to the export",
        "max difference", "equal",
        title=f"{len(SENTENCES)} sentences on one CPU thread",
    )  # fmt: skip
    table.add_row(
        "PyTorch, eager", "-", "-", f"{1e3 * timing.median(seconds[0]):.2f}",
        str(timing.ratio(seconds[0], seconds[1])), "-", "-",
    )  # fmt: skip
    good = is_checked
    labels = ("torch.onnx.export, ONNX Runtime", "regraft, ONNX Runtime")
    for i, (label, written_s) in enumerate(zip(labels, (export_s, convert_s), strict=True)):
        off = _off(sessions[i].run(None, sample), expected)
        good &= off <= TOLERANCE
        size = sum(path.stat().st_size for path in files[i].parent.glob(f"{files[i].name}*"))
        table.add_row(
            label, f"{written_s:.1f}", f"{size / MB:.1f}",
            f"{1e3 * timing.median(seconds[i + 1]):.2f}",
            str(timing.ratio(seconds[i + 1], seconds[1])), f"{off:.1e}",
            "yes" if off <= TOLERANCE else "[red]NO[/]",
        )  # fmt: skip
    console.print(table)
    before, after = train(net, kwargs)
    console.print(
        f"as a PyTorch module, 10 training steps: loss {before:.4f} to {after:.4f}; "
        f"trained weights in {(WORK / 'minilm-l6-trained.onnx').relative_to(ROOT)}"
    )
    return 0 if good and after < before else 1


if __name__ == "__main__":
    sys.exit(main())
