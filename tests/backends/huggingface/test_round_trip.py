"""Ten families and more: folder to module to folder, strictly loaded, with equal outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="folders are loaded with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

import regraft  # noqa: E402
from benchmarks.fixtures import hf_families  # noqa: E402
from regraft.huggingface_sources import save_folder  # noqa: E402
from regraft.ir.derive import DerivedWeight  # noqa: E402
from regraft.ir.weights import ArrayWeight, MappedWeight, Role  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between these packages

QUICK = ("gpt2", "llama")
"""Matrices the other way round with tied embeddings; groups of heads."""


def generated(net: Any) -> Any:
    ids = torch.arange(3, 9).reshape(2, 3)
    return net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8,
                        do_sample=False, pad_token_id=0)  # fmt: skip


def strictly_loaded(cls: type, folder: Path) -> Any:
    net, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return net.eval()


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in hf_families.FAMILIES
    ],
)
def test_a_folder_comes_back_equal(family: str, tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    before = hf_families.save(family, source)
    module = regraft.load(source)
    # matrices are transposed, norms and positions are folded: all of it has to be undone
    regraft.apply(module, "canonicalize,fold-norms,fuse", check="off")
    save_folder(module, result)
    after = strictly_loaded(type(before), result)
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert before.config.to_dict().items() >= {
        (k, v) for k, v in after.config.to_dict().items() if isinstance(v, int | str)
    } - {("_name_or_path", str(result))}
    if family in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma"):
        assert torch.equal(generated(before), generated(after))


def test_weights_stay_in_their_files(tmp_path: Path) -> None:
    hf_families.save("gpt2", tmp_path)
    module = regraft.load(tmp_path)
    store = module.weights
    params = [name for name in store if store.role(name) is Role.PARAM]
    assert params
    assert all(isinstance(store[name], MappedWeight) for name in params)
    assert store.resolve("lm_head.weight") == "transformer.wte.weight"


def test_the_form_with_a_cache_has_states(tmp_path: Path) -> None:
    hf_families.save("llama", tmp_path)
    module = regraft.load(f"{tmp_path}#decode")
    assert {state.input for state in module.states} == {
        f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")
    }
    with pytest.raises(regraft.RegraftError, match="unknown form `nothing`"):
        regraft.load(f"{tmp_path}#nothing")


def test_new_values_of_a_layer_are_written(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    before = hf_families.save("llama", source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    module = regraft.load(source)
    regraft.apply(module, "canonicalize", check="off")
    name = "model.layers.1.mlp.up_proj.weight"
    stored = next(n for n in module.weights if n.startswith(name))
    weight = module.weights[stored]
    assert isinstance(weight, DerivedWeight)  # a matrix is transposed once for all
    new = np.linspace(-1, 1, 48 * 32, dtype=np.float32).reshape(48, 32)
    from regraft.ir.rebind import rebind

    assert rebind(module.weights, {name: ArrayWeight(new)}) == [stored]
    save_folder(module, result)
    after = strictly_loaded(type(before), result).state_dict()
    np.testing.assert_array_equal(after[name].numpy(), new)
    old = before.state_dict()
    assert all(torch.equal(old[each], after[each]) for each in old if each != name)


def test_half_precision_is_kept_and_made(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    before = hf_families.make("llama").bfloat16()
    before.save_pretrained(source)
    save_folder(regraft.load(source), result)
    after = strictly_loaded(type(before), result)
    assert after.dtype is torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(),
                                                  strict=True))  # fmt: skip


def test_convert_writes_a_folder_and_tokenizer_files(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    before = hf_families.save("roberta", source)
    (source / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    (source / "notes.bin").write_text("not the model's")
    made = regraft.convert(source, result, target="hf")
    assert made.check.verified == "module"
    strictly_loaded(type(before), result)
    assert (result / "tokenizer_config.json").is_file()
    assert not (result / "notes.bin").exists()
    assert json.loads((result / "report.json").read_text())["target"] == "hf"


def test_unexpected_tensors_are_named(tmp_path: Path) -> None:
    from regraft.ir.safetensors import read_safetensors, write_safetensors

    hf_families.save("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = dict(read_safetensors(file).tensors)
    kept = {name: ArrayWeight(np.array(tensor.numpy())) for name, tensor in tensors.items()}
    extra = ArrayWeight(np.zeros((2, 32), np.float32))
    write_safetensors(file, {**kept, "cls.seq_relationship.weight": extra}, {"format": "pt"})
    module = regraft.load(tmp_path)
    assert any("`cls.seq_relationship.weight`" in text for text in module.warnings)
