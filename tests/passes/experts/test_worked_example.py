"""The worked example, small: upcycle, train, a file for ONNX Runtime, a folder of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the example trains with PyTorch")
pytest.importorskip("transformers", reason="the example writes a folder of transformers")

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

from benchmarks.moe_example import example  # noqa: E402
from benchmarks.moe_folders import CASES, make  # noqa: E402
from benchmarks.moe_small import labelled  # noqa: E402
from regraft.passes.recovery.fixed import FixedBatches  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages


def test_the_worked_example_trains_and_is_the_same_in_both_forms(tmp_path: Path) -> None:
    make(tmp_path / "source", CASES["llama"])
    rng = np.random.default_rng(0)
    batches = FixedBatches([labelled(rng.integers(2, 96, (4, 12))) for _ in range(2)])
    work = tmp_path / "work"
    work.mkdir()
    found = example(tmp_path / "source", batches, 12, work)
    assert np.mean(found.losses[-2:]) < np.mean(found.losses[:2])
    assert found.loaded == "MixtralForCausalLM"
    assert found.problems == ()
    # f32 through two layers, sums of at most 96 products
    assert found.file_error <= 1e-5
    assert found.folder_error <= 1e-5
