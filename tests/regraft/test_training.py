"""`--train`: what is read, what is refused, and a conversion that recovers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import regraft
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.training import read_training
from tests.cli.snapshot import run

WORDS = ("[UNK]", "one", "two", "three", "four", "five", "six", "seven")


def _encoder(length: str = "S") -> Module:
    return parse_module(f"""
    module "encoder"
    symbol B
    {"symbol S" if length == "S" else ""}
    weight @"table" : f32[8, 4] role=param = random(1)
    graph(%input_ids : i64[B, {length}], %attention_mask : i64[B, {length}]) {{
      %table = weight @"table"
      %x = gather(%table, %input_ids) {{axis = 0}}
      return %x
    }}
    """)


def _tokenizer(folder: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers", reason="texts need the package `tokenizers`")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_texts_become_batches_of_like_length(tmp_path: Path) -> None:
    text = tmp_path / "news.txt"
    text.write_text("one two three four\n\nfive six seven one two\n" + "one " * 500)
    data = read_training(text, _encoder(), [tmp_path / "nowhere", _tokenizer(tmp_path)])
    for batch in data.items:
        assert set(batch) == {"input_ids", "attention_mask"}
        np.testing.assert_array_equal(batch["input_ids"] != 0, batch["attention_mask"] == 1)
    counts = sum(int(batch["attention_mask"].sum()) for batch in data.items)
    assert counts == 4 + 5 + 500
    assert max(batch["input_ids"].shape[1] for batch in data.items) <= 128


def test_texts_for_a_fixed_length_are_filled_up(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four five\n")
    (tmp_path / "b.txt").write_text("six seven one two " * 3)
    data = read_training(tmp_path, _encoder("6"), [_tokenizer(tmp_path)])
    assert {batch["input_ids"].shape[1] for batch in data.items} == {6}


def test_what_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    text = tmp_path / "news.txt"
    text.write_text("one two three four five\n")
    with pytest.raises(UnsupportedError, match=r"no `tokenizer\.json` beside the model"):
        read_training(text, _encoder(), [tmp_path])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises((InputError, UnsupportedError), match=r"is no tokenizer|needs? the package"):
        read_training(text, _encoder(), [tmp_path])
    images = parse_module('module "m"\nsymbol B\ngraph(%x : f32[B, 4]) {\n  return %x\n}')
    with pytest.raises(InputError, match="is text, and the model takes `x`"):
        read_training(text, images, [tmp_path])
    np.savez(tmp_path / "batch.npz", wrong=np.zeros(3))
    with pytest.raises(regraft.RegraftError):
        read_training(tmp_path / "batch.npz", images)
    with pytest.raises(InputError, match="does not exist"):
        read_training(tmp_path / "nothing.npz", images)


def test_convert_recovers_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="recovery trains with PyTorch")
    from tests.backends.torch.training.test_recover import batches, stack

    source = tmp_path / "stack.onnx"
    regraft.save(stack(), source)
    (tmp_path / "train").mkdir()
    for number, batch in enumerate(batches(3)):
        np.savez(tmp_path / "train" / f"{number}.npz", **batch)
    arguments = [
        "convert", str(source), "--passes", "drop-layers{layers=[1]},recover{steps=4}",
        "--train", str(tmp_path / "train"), "--checkpoints", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    reports = []
    for name in ("first", "second"):
        code, out, err = run([*arguments, "-o", str(tmp_path / name)], capsys)
        assert code == 0, err
        reports.append(json.loads(out))
    (first, second) = (
        next(p for p in report["passes"] if p["name"] == "recover") for report in reports
    )
    assert first["stats"]["steps"] == 4
    assert first["stats"] == second["stats"]  # read from the checkpoint
    models = [(tmp_path / name / "model.onnx").read_bytes() for name in ("first", "second")]
    assert models[0] == models[1]


def test_recovery_without_data_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="recovery trains with PyTorch")
    from tests.backends.torch.training.test_recover import stack

    source = tmp_path / "stack.onnx"
    regraft.save(stack(), source)
    passes = "drop-layers{layers=[1]},recover"
    code, _, err = run(["convert", str(source), "--dry-run", "--passes", passes], capsys)
    assert code == 2
    assert "needs data" in err
    assert "--train DATA" in err
