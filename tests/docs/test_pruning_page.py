"""The example of docs/pruning.md runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import regraft
from docs.generate import FOLDER
from tests.docs.test_docs import blocks
from tests.passes.pruning.test_prune import stack


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    regraft.save(stack(), "encoder.onnx")
    x = np.random.default_rng(0).standard_normal((64, 3, 16)).astype(np.float32)
    np.savez("batches.npz", x=x)
    code = "\n".join(blocks(FOLDER / "pruning.md", "py"))
    scope: dict[str, object] = {"__name__": "docs"}
    exec(compile(code, "pruning.md", "exec", dont_inherit=True), scope)
    stats = scope["records"][-1].stats  # type: ignore[index]  # a scope holds anything
    assert stats["error-repaired"] < stats["error-pruned"]
