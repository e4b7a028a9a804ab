"""Whole models as packages: their self-tests in the interpreter, outputs and training.

Each is converted, its `selftest.py` runs as a script with `TRITON_INTERPRET=1`, and the package
computes and trains beside the module that the torch backend writes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import ROOT, Measurement, Row, Settings, at_most, held
from benchmarks.triton_models import SUBJECTS, Subject

_VERSION = 1
_STEPS, _RATE = 3, 0.01


def sources() -> str:
    """Returns a digest of the backends that write packages: figures are kept for as long."""
    digest = hashlib.sha256()
    for folder in ("backends/triton", "backends/torch"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".json"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def interpreting() -> None:
    """Turns Triton's interpreter on, which has to come before Triton is imported.

    Raises:
        RuntimeError: Triton is there and compiles.
    """
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported without its interpreter")
    os.environ["TRITON_INTERPRET"] = "1"


def _losses(net: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
    """Returns the losses of a few steps of gradient descent."""
    import torch

    from regraft.backends.triton.selftest import mean_square, tensors_in

    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=_RATE)
    losses = []
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = mean_square(list(tensors_in(net(*args, **kwargs))))
        if loss is None:
            raise ValueError("the model has no output that trains")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _packaged(subject: Subject) -> Figures:
    interpreting()
    import torch

    import regraft
    from regraft.backends.triton.package import load_package
    from regraft.backends.triton.selftest import tensors_in
    from tests.backends.triton.harness import interpreted

    torch.manual_seed(0)
    net, args, kwargs = subject.build()
    net.eval()
    with tempfile.TemporaryDirectory() as work, interpreted():
        folder = Path(work) / "package"
        regraft.convert(
            net, folder, args=args, kwargs=kwargs, target="triton", check="off",
            passes=subject.passes,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(folder / "selftest.py"), "--device", "cpu"],
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=work, capture_output=True, text=True, check=False,
        )  # fmt: skip
        made = load_package(folder)
        found = list(tensors_in(made(*args, **kwargs)))
        losses = _losses(made, args, kwargs)
        text = (folder / "model.py").read_text(encoding="utf-8")
    module = regraft.capture(net, args, kwargs)
    regraft.apply(module, subject.passes)
    usual = regraft.to_torch(module)
    expected = list(tensors_in(usual(*args, **kwargs)))
    pairs = [[x.detach().double() for x in pair] for pair in zip(found, expected, strict=True)]
    usual_losses = _losses(usual, args, kwargs)
    return {
        "status": done.returncode,
        "said": (done.stdout + done.stderr).strip().splitlines()[-1:],
        "calls": sorted(set(re.findall(r"kernels\.(\w+)\(", text))),
        "difference": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs),
        "losses": losses,
        "usual losses": usual_losses,
    }


def _rows(group: str, settings: Settings) -> Iterator[Row]:
    for name, subject in SUBJECTS[group].items():
        key = f"{group}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{sources()}"
        make = functools.partial(_packaged, subject)
        figures = kept("triton", key, _VERSION, settings, make)
        calls = set(figures["calls"])
        shown_calls = ", ".join(sorted(call for call in calls if "_and_" not in call))
        yield held(f"{name}: self-test in the interpreter", figures["status"] == 0,
                   "; ".join(figures["said"]))  # fmt: skip
        yield held(f"{name}: kernels called", calls >= set(subject.called), shown_calls)
        yield at_most(f"{name}: outputs beside the torch backend", figures["difference"],
                      subject.tolerance, "of the largest")  # fmt: skip
        losses, usual = figures["losses"], figures["usual losses"]
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, usual, strict=True))
        yield at_most(f"{name}: losses of {_STEPS} steps beside the torch backend", apart,
                      subject.tolerance, "relative",
                      " ".join(f"{loss:.5f}" for loss in losses))  # fmt: skip
        yield held(f"{name}: it trains where the torch backend does",
                   losses[-1] < losses[0] or usual[-1] >= usual[0])  # fmt: skip


MEASUREMENTS = tuple(
    Measurement(
        f"packages {group}",
        f"packages of {', '.join(SUBJECTS[group])}: self-test, outputs and training",
        functools.partial(_rows, group),
    )
    for group in SUBJECTS
)
