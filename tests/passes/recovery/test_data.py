"""Training data: order, padding, resumption, files."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.errors import InputError
from regraft.passes.recovery.data import (
    Examples,
    Stream,
    image_examples,
    npz_examples,
    text_examples,
)


def _numbers(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.asarray(i)} for i in range(count)]


@pytest.mark.parametrize("first", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("seed", [None, 0, 5])
def test_a_number_always_has_the_same_batch(first: int, seed: int | None) -> None:
    data = Examples(_numbers(11), 3, seed=seed)
    whole = [batch["x"].tolist() for batch in islice(data.batches(), 12)]
    assert [batch["x"].tolist() for batch in islice(data.batches(first), 5)] == whole[first:][:5]


def test_epochs_are_shuffled_anew_and_see_every_example_once() -> None:
    data = Examples(_numbers(12), 4)
    batches = [batch["x"].tolist() for batch in islice(data.batches(), 6)]
    epochs = [[x for batch in half for x in batch] for half in (batches[:3], batches[3:])]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_shorter_examples_are_filled_up() -> None:
    items = [{"ids": np.arange(1, n + 1), "mask": np.ones(n, np.int64)} for n in (2, 5, 3)]
    batch = Examples(items, 3, seed=None, fill={"ids": 9}, multiple_of=4).collate(items)
    assert batch["ids"].tolist() == [
        [1, 2, 9, 9, 9, 9, 9, 9],
        [1, 2, 3, 4, 5, 9, 9, 9],
        [1, 2, 3, 9, 9, 9, 9, 9],
    ]
    assert batch["mask"].sum(1).tolist() == [2, 5, 3]
    assert batch["ids"].dtype == np.int64


def test_batches_larger_than_the_data_are_refused() -> None:
    with pytest.raises(InputError, match="batches of 4 out of 3 examples"):
        Examples(_numbers(3), 4)


def test_streams_begin_again_and_skip_what_was_seen() -> None:
    stream = Stream(_numbers(3))
    assert [int(b["x"]) for b in islice(stream.batches(), 7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [int(b["x"]) for b in islice(stream.batches(4), 3)] == [1, 2, 0]


def test_text_is_cut_into_pieces(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two three four five six seven\n\nhi\neight nine ten eleven\n")
    words: list[str] = []

    def tokenizer(text: str) -> dict[str, list[int]]:
        words.extend(text.split())
        return {"ids": list(range(len(text.split()))), "mask": [1] * len(text.split())}

    items = text_examples([file], tokenizer, max_tokens=6, min_tokens=3)
    assert [len(item["ids"]) for item in items] == [4, 3, 4]
    assert " ".join(words).startswith("one two three four five six seven")
    with pytest.raises(InputError, match="no text of at least 9 tokens"):
        text_examples([file], tokenizer, min_tokens=9)


def test_text_of_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("caf\xe9 au lait".encode("latin-1"))
    seen: list[str] = []

    def tokenizer(text: str) -> dict[str, list[int]]:
        seen.append(text)
        return {"ids": [1, 2, 3, 4]}

    with pytest.raises(InputError, match=r"is no utf-8 text[\s\S]*give its `encoding`"):
        text_examples([file], tokenizer)
    assert len(text_examples([file], tokenizer, encoding="latin-1")) == 1
    assert seen == ["café au lait"]


def test_examples_of_npz_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(6).reshape(3, 2), y=np.arange(3))
    items = npz_examples([tmp_path / "a.npz"])
    assert [(item["x"].tolist(), int(item["y"])) for item in items] == [
        ([0, 1], 0),
        ([2, 3], 1),
        ([4, 5], 2),
    ]
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(InputError, match=r"first axes of \[2, 3\]"):
        npz_examples([tmp_path / "b.npz"])


def test_folders_of_images_are_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="images need Pillow")
    for name, color in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / name).mkdir()
        image.new("RGB", (10, 6), color).save(tmp_path / name / "1.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    items = image_examples(tmp_path, "pixels", (4, 8), mean=(0, 0, 0), std=(1, 1, 1))
    assert [int(item["label"]) for item in items] == [0, 1]
    assert items[0]["pixels"].shape == (3, 4, 8)
    assert items[0]["pixels"].dtype == np.float32
    assert items[0]["pixels"][:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert items[1]["pixels"][:, 0, 0].tolist() == [0.0, 0.0, 1.0]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="has no image"):
        image_examples(tmp_path / "none", "pixels", (4, 8))
