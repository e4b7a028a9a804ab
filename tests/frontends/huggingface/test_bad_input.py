"""Damaged folders: every problem is named at once, and the exit code is that of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.frontends.huggingface.checkpoint import open_checkpoint
from regraft.ir.errors import InputError, RegraftError, UnsupportedError
from regraft.ir.safetensors import read_safetensors, write_safetensors
from regraft.ir.weights import ArrayWeight


def weights(count: int = 3) -> dict[str, ArrayWeight]:
    return {f"w{i}": ArrayWeight(np.full((2, 4), i, np.float32)) for i in range(count)}


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, data = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, weights(), {"format": "pt"})
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return path


def test_what_was_written_is_read(file: Path) -> None:
    found = read_safetensors(file)
    assert list(found.tensors) == ["w0", "w1", "w2"]
    assert found.metadata == {"format": "pt"}
    for name, weight in weights().items():
        np.testing.assert_array_equal(found.tensors[name].numpy(), weight.array)


def _set(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("w1", "data_offsets", [32, 32 << 20]), "`w1` is f32[2, 4] and has"),
        (_set("w1", "shape", [2, -4]), "`w1` has the shape [2, -4]"),
        (_set("w1", "shape", [True, 8]), "`w1` has the shape [True, 8]"),
        (_set("w1", "shape", [1 << 40, 1 << 40]), "`w1` is f32["),
        (_set("w1", "dtype", "F13"), "`w1` has the element type `F13`"),
        (_set("w1", "data_offsets", [0, 32]), "`w1` overlaps"),
        (_set("w1", "data_offsets", [64, 32]), "`w1` has the place [64, 32]"),
        (_set("w1", "data_offsets", None), "`w1` has the place None"),
        (lambda header: header.update(w1=3), "`w1` has no type, shape and place"),
    ],
)
def test_wrong_entries_are_named(
    file: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(file, change)
    with pytest.raises(InputError) as caught:
        open_checkpoint(file.parent)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_truncated_file_names_all_that_is_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="2 of 3 tensors are wrong") as caught:
        open_checkpoint(file.parent)
    assert "`w1` ends at byte" in str(caught.value)
    assert "`w2` ends at byte" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"\x10\0\0\0", "it has 4 bytes"),
        (b"\xff" * 64, "say a header of"),
        ((5).to_bytes(8, "little") + b"{nope", "no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((3).to_bytes(8, "little") + b'{"\xff', "no JSON"),
    ],
)
def test_a_damaged_header_is_refused(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        open_checkpoint(file.parent)
    assert message in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no `model\.safetensors`"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(InputError, match="pickled") as caught:
        open_checkpoint(tmp_path)
    assert "save_pretrained" in str(caught.value.hint)
    assert caught.value.exit_code == 2


def shards(folder: Path) -> Path:
    write_safetensors(folder / "a.safetensors", {"x": weights()["w0"]})
    write_safetensors(folder / "b.safetensors", {"y": weights()["w1"]})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    return index


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    shards(tmp_path)
    found = open_checkpoint(tmp_path)
    assert list(found.tensors) == ["x", "y"]
    assert len(found.files) == 2


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"x": "a.safetensors", "y": "c.safetensors"}, "1 of 2 shards are missing"),
        ({"x": "b.safetensors", "z": "a.safetensors"}, "2 tensors are not in the shard"),
        ({"x": "../a.safetensors"}, "outside its folder: `../a.safetensors`"),
        ({}, "no `weight_map`"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    tmp_path: Path, places: dict[str, str], message: str
) -> None:
    shards(tmp_path).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert message in str(caught.value)


def load(folder: Path) -> Any:
    pytest.importorskip("torch", reason="models are built with PyTorch")
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    from regraft.frontends.huggingface.load import load_folder

    return load_folder(folder)


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 4,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "12 tensors of `LlamaForCausalLM` are missing"),
        ({"architectures": None}, "names no class in `architectures`"),
        ({"architectures": ["Nonesuch"]}, "no model class `Nonesuch`"),
        ({"architectures": ["os"]}, "no model class `os`"),
        ({"model_type": None}, "has no `model_type`"),
        ({"num_hidden_layers": "two"}, "Field 'num_hidden_layers' expected int"),
        ({"num_attention_heads": 3}, "no config of `LlamaForCausalLM`"),
        ({"hidden_size": "x"}, "no config of `LlamaForCausalLM`"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    file: Path, change: dict[str, Any], message: str
) -> None:
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    (file.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(RegraftError) as caught:
        load(file.parent)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_code_of_the_folder_does_not_run_unasked(file: Path) -> None:
    (file.parent / "modeling.py").write_text("raise SystemExit('ran')")
    own = {"auto_map": {"AutoModel": "modeling.Own"}, "architectures": ["Own"]}
    (file.parent / "config.json").write_text(json.dumps({**CONFIG, **own}))
    with pytest.raises(UnsupportedError, match="needs code of its own") as caught:
        load(file.parent)
    assert "--trust-remote-code" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_a_class_that_cannot_be_imported_names_the_cause(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="models are built with PyTorch")
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    from regraft.frontends.huggingface import classes

    class Broken:
        def __getattr__(self, name: str) -> Any:
            try:
                raise RuntimeError("operator torchvision::nms does not exist")
            except RuntimeError as error:
                message = f"Could not import module '{name}'"
                raise ModuleNotFoundError(message) from error

    monkeypatch.setattr(classes, "transformers", Broken())
    with pytest.raises(InputError, match="RuntimeError: operator torchvision::nms") as caught:
        classes.read_architecture(file.parent)
    assert caught.value.exit_code == 2
    assert "for another PyTorch" in str(caught.value.hint)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra `hf`")
    from regraft.frontends.huggingface.tokenizers import read_tokenizer

    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(InputError, match=r"`.*tokenizer\.json` is no tokenizer"):
        read_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_tensors_that_are_rounded_are_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="models are built with PyTorch")
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    from benchmarks.fixtures import hf_families

    hf_families.save("llama", tmp_path)
    assert load(tmp_path).module.warnings == []
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    (warning,) = load(tmp_path).module.warnings
    assert "are f32 in the files and the config says bf16" in warning
