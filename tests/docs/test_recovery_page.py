"""The example of docs/recovery.md runs, with fewer steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import regraft
from docs.generate import FOLDER
from tests.docs.test_docs import blocks

pytest.importorskip("torch", reason="recovery trains with PyTorch")

from tests.backends.torch.training.test_recover import stack  # isort: skip


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    regraft.save(stack(), "encoder.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6, 8)).astype(np.float32)
    np.savez("batches.npz", x=x, attention_mask=np.ones((64, 6), np.float32))
    code = "\n".join(blocks(FOLDER / "recovery.md", "py"))
    for steps in ("steps=2400", "steps=1200"):
        assert steps in code
        code = code.replace(steps, "steps=3")
    scope: dict[str, object] = {"__name__": "docs"}
    exec(compile(code, "recovery.md", "exec", dont_inherit=True), scope)
    assert (tmp_path / "run" / "distillation" / "checkpoint.pt").exists()
    smaller = regraft.load("smaller.onnx")
    assert len(list(smaller.weights)) < len(list(stack().weights))
    assert scope["report"].steps == 3  # type: ignore[attr-defined]
