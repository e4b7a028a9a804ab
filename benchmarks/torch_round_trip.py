"""Training of a captured encoder and its way back; the core set in PyTorch; gradients.

The last two are the tests of the PyTorch backend, run here so that their counts stand in the table.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Any

from benchmarks.measure import ROOT, Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.models import CORE
from benchmarks.timing import run

STEPS = 20
DROP = 0.9


def training(settings: Settings) -> Iterable[Row]:
    """Capture, 20 training steps of the generated module, back, and ONNX Runtime."""
    import numpy as np
    import torch

    import regraft
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    from benchmarks.torch_compared import quiet
    from benchmarks.torch_speed import encoder
    from regraft.backends.onnx import to_proto
    from regraft.backends.onnx.runtime import OrtRunner
    from regraft.backends.torch.executor import TorchRunner
    from regraft.frontends.torch.capture import capture

    quiet()
    torch.manual_seed(0)
    subject = encoder()
    module = capture(subject.net, (), subject.example, dynamic_shapes=subject.axes).module
    regraft.apply(module, "canonicalize", check="off")
    sample = {name: tensor.numpy() for name, tensor in subject.example.items()}
    before = OrtRunner(to_proto(module))(sample)
    net = regraft.to_torch(module).train().requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        results: Any = net(*subject.example.values())
        loss = torch.utils._pytree.tree_leaves(results)[0].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    changed = regraft.read_back(module, net.eval())
    yield at_most(
        f"loss after {STEPS} steps / before", losses[-1] / losses[0], DROP, "x",
        f"{losses[0]:.3f} to {losses[-1]:.3f}; {len(changed)} weights read back",
    )  # fmt: skip
    got, want = OrtRunner(to_proto(module))(sample), TorchRunner(net, module)(sample)
    names = [name for name, array in want.items() if array.dtype.kind == "f"]
    off = max(float(np.abs(got[n] - want[n]).max() / np.abs(want[n]).max()) for n in names)
    moved = max(float(np.abs(before[n] - want[n]).max() / np.abs(want[n]).max()) for n in names)
    # six layers of sums of 1536 terms, added in another order
    yield at_most("trained outputs in ONNX Runtime: difference / largest", off, 1e-5, "")
    yield held("training moved the outputs", moved > 100 * off, f"by {moved:.2g} of the largest")


def _passed(label: str, arguments: list[str], least: int, settings: Settings) -> Iterable[Row]:
    report = settings.work / f"{label.replace(' ', '-')}.xml"
    report.unlink(missing_ok=True)
    done = run(
        [settings.python, "-m", "pytest", "-q", "-n0", f"--junitxml={report}", *arguments],
        max(settings.timeout_s, 1200.0), cwd=ROOT,
    )  # fmt: skip
    if not report.exists():
        done.require_success(label)
    cases = ET.parse(report).getroot().findall(".//testcase")  # a file that pytest wrote just now
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    yield at_least(
        f"{label}: tests that pass", len(cases) - len(bad) - len(skipped), least, "tests",
        f"{len(skipped)} skipped",
    )  # fmt: skip
    yield held(
        f"{label}: none fails", not bad, ", ".join(str(c.get("name")) for c in bad[:5])
    )  # fmt: skip


def core_set(settings: Settings) -> Iterable[Row]:
    """Every ONNX model of the core set in PyTorch, as loaded and converted with checks."""
    yield shown("models of the core set", len(CORE), "models", ", ".join(m.name for m in CORE))
    # two tests of each model, one as loaded and one converted
    yield from _passed(
        "ONNX to torch", ["tests/backends/torch/test_core_models.py"], 2 * len(CORE), settings
    )


def gradients(settings: Settings) -> Iterable[Row]:
    """Gradients of small graphs and of every operator that has some, against differences."""
    files = ["tests/backends/torch/test_executor.py", "tests/backends/torch/test_operators.py"]
    yield from _passed("gradients", [*files, "-k", "finite_differences"], 20, settings)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("training", "capture, 20 training steps, read back, ONNX Runtime", training),
    Measurement("core-set", "every core-set ONNX model in PyTorch", core_set),
    Measurement("gradients", "gradients against finite differences", gradients),
)
