"""Decoders with a cache: the tokens of `transformers`' greedy search, through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="folders are loaded with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

import regraft  # noqa: E402
from benchmarks.fixtures import hf_families  # noqa: E402
from benchmarks.recovery_decode import NEW, generate  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages

SLOW = ("mistral", "qwen2", "qwen3", "gemma")


def generated(run: OrtRunner, module: Any, ids: Any, heads: tuple[int, int]) -> Any:
    """Returns greedy tokens: the text through an empty cache, then one token at a time."""
    cache = {
        state.input: np.zeros((len(ids), heads[0], 0, heads[1]), np.float32)
        for state in module.states
    }
    fresh, row = ids, ids
    for _ in range(NEW):
        mask = np.ones(row.shape, np.int64)
        outputs = run({"input_ids": fresh, "attention_mask": mask, **cache})
        fresh = outputs["logits"][:, -1:].argmax(-1)
        row = np.concatenate([row, fresh], 1)
        cache = {state.input: outputs[state.output] for state in module.states}
    return row


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_tokens_through_a_cache_are_those_of_generate(family: str, tmp_path: Path) -> None:
    net = hf_families.save(family, tmp_path / "source")
    made = regraft.convert(f"{tmp_path / 'source'}#decode", tmp_path / "out", target="ort-cpu")
    assert made.check.verified == "module"
    assert any(binding["past"] == 0 for binding in made.check.bindings)
    config = net.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ids = np.arange(3, 13).reshape(2, 5)
    run = OrtRunner(tmp_path / "out" / "model.onnx")
    found = generated(run, made.module, ids, (heads, size))
    np.testing.assert_array_equal(found, generate(net, ids))


def test_the_mask_covers_the_cache_and_the_new_tokens(tmp_path: Path) -> None:
    hf_families.save("llama", tmp_path)
    module = regraft.load(f"{tmp_path}#decode")
    assert str(module.input_types["attention_mask"]) == "i64[batch, past + seq]"
    assert module.symbols["past"].lo == 0
    assert "total" not in module.symbols


def test_an_output_folder_takes_the_tokenizer_along(tmp_path: Path) -> None:
    hf_families.save("gpt2", tmp_path / "source")
    (tmp_path / "source" / "1_Pooling").mkdir()
    (tmp_path / "source" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    regraft.convert(tmp_path / "source", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
