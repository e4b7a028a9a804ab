"""What `--metric` is given by other options."""

from pathlib import Path

from regraft.cli.options import load_metric


def test_a_metric_reads_texts_by_the_tokenizer_of_the_command() -> None:
    asked = load_metric("embedding", Path("texts.txt"), "0.01", Path("folder"))
    assert asked is not None
    assert asked.metric.tokenizer == "folder"


def test_a_metric_that_names_a_tokenizer_keeps_it() -> None:
    asked = load_metric("embedding{tokenizer=own}", Path("texts.txt"), None, Path("folder"))
    assert asked is not None
    assert asked.metric.tokenizer == "own"
