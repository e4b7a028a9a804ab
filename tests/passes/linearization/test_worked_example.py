"""The worked example, small: linearize, train, audit, two files for ONNX Runtime that generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the example trains with PyTorch")
pytest.importorskip("transformers", reason="the example reads a folder of transformers")

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

from benchmarks.linearize_decode import in_torch  # noqa: E402
from benchmarks.linearize_example import example  # noqa: E402
from benchmarks.moe_folders import CASES, make  # noqa: E402
from regraft.passes.recovery.fixed import FixedBatches  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages

_ROWS, _LENGTH, _TOKENS = 2, 24, 6


def test_two_files_generate_the_tokens_of_pytorch_with_states_of_constant_size(
    tmp_path: Path,
) -> None:
    make(tmp_path / "source", CASES["llama"])
    rng = np.random.default_rng(0)
    batches = [
        {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for ids in rng.integers(2, 96, (3, _ROWS, _LENGTH))
    ]
    work = tmp_path / "work"
    work.mkdir()
    prompt = batches[2]["input_ids"]
    found = example(
        tmp_path / "source", FixedBatches(batches[:2]), batches[2:], prompt, _TOKENS, work,
        transfer=2, recover=2,
    )  # fmt: skip
    assert sorted(path.name for path in work.glob("*.onnx")) == ["decode.onnx", "prefill.onnx"]
    wanted, expected = in_torch(found.module, prompt, _TOKENS)
    np.testing.assert_array_equal(found.tokens, wanted)
    # f32 through two layers, token by token and over the whole text
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)
    assert found.state_bytes[0] == found.state_bytes[1] > 0
    assert found.report["verdict"] in {"hybrid", "window", "linear, its window idle",
                                       "attention does not matter here"}  # fmt: skip
