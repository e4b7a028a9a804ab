"""Data of `--calibrate`: texts by the model's own tokenizer, and what is said without any."""

import json

import pytest

from regraft.calibration import read_calibration
from regraft.conversion import convert
from regraft.conversion_options import ConvertOptions
from regraft.ir.errors import InputError
from regraft.sources import open_source
from tests.cli.workplace import ENCODER

WORDS = {
    "version": "1.0",
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {
        "type": "WordLevel",
        "unk_token": "?",
        "vocab": {word: i for i, word in enumerate(("?", "one", "two", "three", "four"))},
    },
}
"""A tokenizer: one token per word."""

LINES = "one two\n\nfour four one\nthree\n"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "encoder.rg"
    path.write_text(ENCODER)
    (tmp_path / "texts.txt").write_text(LINES)
    return path


def tokenizer(folder):
    pytest.importorskip("tokenizers", reason="texts need the package `tokenizers`")
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(WORDS))
    return folder


def ids(samples):
    return [sample["input_ids"].tolist() for sample in samples]


def test_each_line_is_a_sample_without_filling(model, tmp_path):
    place = tokenizer(tmp_path / "words")
    samples = read_calibration(tmp_path / "texts.txt", open_source(model), place)
    assert ids(samples) == [[[1, 2]], [[4, 4, 1]], [[3]]]
    assert all((sample["attention_mask"] == 1).all() for sample in samples)


def test_a_text_without_a_tokenizer_says_how_to_name_one(model, tmp_path):
    with pytest.raises(InputError, match=r"there is no `tokenizer\.json`") as caught:
        read_calibration(tmp_path / "texts.txt", open_source(model))
    assert "--tokenizer" in str(caught.value.hint)


def test_an_empty_text_is_an_error(model, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    place = tokenizer(tmp_path / "words")
    with pytest.raises(InputError, match="nothing to calibrate on"):
        read_calibration(tmp_path / "empty.txt", open_source(model), place)


def test_a_conversion_calibrates_on_texts(model, tmp_path):
    options = ConvertOptions(
        passes="quantize", calibrate=tmp_path / "texts.txt", tokenizer=tokenizer(tmp_path / "words")
    )
    report = convert(model, tmp_path / "out", options).report
    (entry,) = [entry for entry in report["passes"] if entry["name"] == "quantize"]
    assert entry["stats"]["samples"] == 3
    assert report["warnings"] == []
    assert {layer["name"] for layer in entry["layers"]} == {"up", "down", "table"}


def test_generated_samples_are_said_aloud_and_the_page_lists_layers(model, tmp_path):
    result = convert(model, tmp_path / "out", ConvertOptions(passes="quantize{activations=static}"))
    assert any("synthetic samples" in text for text in result.report["warnings"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Rounded layers, the worst first" in page
    assert "synthetic samples" in page
    (entry,) = [e for e in result.report["passes"] if e["name"] == "quantize"]
    errors = [layer["error"] for layer in entry["layers"]]
    assert errors == sorted(errors, reverse=True)
    # 48 inputs, 32 outputs: a byte each instead of four, a scale of four bytes per output
    down = next(layer for layer in entry["layers"] if layer["name"] == "down")
    assert down["bytes"] == 48 * 32 + 4 * 32
    assert down["bytes_to_keep"] == 4 * 48 * 32 - down["bytes"]
