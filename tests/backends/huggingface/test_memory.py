"""A checkpoint is written tensor by tensor: memory does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fixtures import hf_large

pytest.importorskip("torch", reason="folders are captured with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")


def peak_bytes(folder: Path, sizes: tuple[int, int, int, int]) -> tuple[int, int]:
    """Returns the bytes of a checkpoint and the peak of memory of changing one matrix of it."""
    total = hf_large.make(folder / "source", *sizes)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fixtures.hf_large", "change", str(folder / "source"),
         str(folder / "result")],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return total, int(done.stdout.split()[-1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    layers, width, inner, words = hf_large.SMALL
    _, base = peak_bytes(tmp_path / "narrow", (layers, 128, 344, 100))
    total, peak = peak_bytes(tmp_path / "wide", (layers, width, inner, words))
    # the same graph with 60 times the weights: of those, a matrix or two are in memory at once
    assert peak - base < 0.25 * total
