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


def _run(folder: Path, processes: int, *flags: str) -> list[dict[str, np.ndarray]]:
    """Returns losses, weights and the part of them that it held, of every process."""
    folder.mkdir(exist_ok=True)
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, _WORKER, str(folder), *flags],
        cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = sorted(folder.glob("rank*.npz"))
    return [dict(np.load(file)) for file in files]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--shards"],
        pytest.param(["--lora"], marks=pytest.mark.slow),
        pytest.param(["--lora", "--shards"], marks=pytest.mark.slow),
    ],
    ids=lambda flags: " ".join(flags) or "copies",
)
def test_two_processes_give_the_result_of_one_within_noise(
    tmp_path: Path, flags: list[str]
) -> None:
    (one,) = _run(tmp_path / "one", 1, *flags)
    first, second = _run(tmp_path / "two", 2, *flags)
    start = disturbed().weights
    held = [float(each.pop("held")[0]) for each in (one, first, second)]
    assert held[0] == 1
    if "--shards" in flags:
        assert sum(held[1:]) == pytest.approx(1)
        assert max(held[1:]) < 0.7  # rows that cannot be halved lie in the first
    else:
        assert held[1:] == [1, 1]
    for name, want in one.items():
        np.testing.assert_array_equal(first[name], second[name])
        if name == "losses":
            np.testing.assert_allclose(first[name], want, rtol=1e-5)
            continue
        # sums in another order, which Adam amplifies where gradients are small: well below the
        # change of ten steps of at most 0.01
        np.testing.assert_allclose(first[name], want, rtol=0, atol=5e-5)
        if "--lora" not in flags:
            assert np.abs(want - start[name].numpy()).max() > 0.02
    assert (tmp_path / "two" / "run" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_an_interrupted_run_of_shards_ends_at_the_same_bits(tmp_path: Path) -> None:
    whole, _ = _run(tmp_path / "whole", 2, "--shards")
    assert _run(tmp_path / "again", 2, "--shards", "--stop-at", "28") == []
    assert (tmp_path / "again" / "run" / "checkpoint.pt").exists()
    resumed, _ = _run(tmp_path / "again", 2, "--shards")
    for name, want in whole.items():
        np.testing.assert_array_equal(resumed[name], want)


def test_batches_have_to_divide_evenly() -> None:
    assert Group(1, 4).share(8) == 2
    with pytest.raises(UsageError, match=r"6 batches per step for 4 processes"):
        Group(0, 4).share(6)
