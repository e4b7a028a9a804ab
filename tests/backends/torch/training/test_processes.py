"""Several processes train like one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.errors import UsageError
from tests.backends.torch.models import torch
from tests.backends.torch.training.models import disturbed

from regraft.backends.torch.training.processes import Group  # isort: skip  # needs torch

ROOT = Path(__file__).parents[4]
_WORKER = "tests.backends.torch.training.ddp_worker"

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)


def _run(folder: Path, processes: int, adapter: str) -> list[dict[str, np.ndarray]]:
    folder.mkdir()
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, _WORKER, str(folder), adapter],
        cwd=ROOT, env=env, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(processes)]


@pytest.mark.parametrize("adapter", ["none", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_processes_give_the_result_of_one_within_noise(tmp_path: Path, adapter: str) -> None:
    (one,) = _run(tmp_path / "one", 1, adapter)
    first, second = _run(tmp_path / "two", 2, adapter)
    start = disturbed().weights
    for name, want in one.items():
        np.testing.assert_array_equal(first[name], second[name])
        if name == "losses":
            np.testing.assert_allclose(first[name], want, rtol=1e-5)
            continue
        # sums in another order, which Adam amplifies where gradients are small: well below the
        # change of ten steps of at most 0.01
        np.testing.assert_allclose(first[name], want, rtol=0, atol=5e-5)
        if adapter == "none":
            assert np.abs(want - start[name].numpy()).max() > 0.02
    assert (tmp_path / "two" / "run" / "checkpoint.pt").exists()


def test_batches_have_to_divide_evenly() -> None:
    assert Group(1, 4).share(8) == 2
    with pytest.raises(UsageError, match=r"6 batches per step for 4 processes"):
        Group(0, 4).share(6)
