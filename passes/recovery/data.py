"""Training data: batches by number, the same for the same number, so that runs resume exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regraft.ir.errors import InputError, UnsupportedError

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]
Tokenizer = Callable[[str], Mapping[str, Sequence[int]]]
"""Text -> token ids and masks by input name; tokenizers of `transformers` are such."""

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


class Data(Protocol):
    """Batches without end."""

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from number `first` on; a number always has the same batch."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Batches drawn from single examples: shuffled anew in every epoch, the rest left out.

    Args:
        items: Arrays by name, without batch axis; an axis may differ in length between examples.
        batch_size: Examples of a batch.
        seed: Seed of the order; None keeps the order that they have.
        fill: What shorter examples are filled up with at their end, by name; default 0.
        multiple_of: Padded lengths are rounded up to it.
    """

    items: Sequence[Batch]
    batch_size: int
    seed: int | None = 0
    fill: Mapping[str, float] = field(default_factory=dict)
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.items):
            raise InputError(
                f"batches of {self.batch_size} out of {len(self.items)} examples",
                hint="give more examples, or a smaller batch size",
            )

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from number `first` on."""
        per_epoch = len(self.items) // self.batch_size
        number = first
        while True:
            epoch, offset = divmod(number, per_epoch)
            order = np.arange(len(self.items))
            if self.seed is not None:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            for idx in range(offset, per_epoch):
                chosen = order[idx * self.batch_size : (idx + 1) * self.batch_size]
                yield self.collate([self.items[i] for i in chosen])
            number = (epoch + 1) * per_epoch

    def collate(self, chosen: Sequence[Batch]) -> dict[str, Array]:
        """Returns examples as one batch, filled up to the longest."""
        return {
            name: _stack([np.asarray(item[name]) for item in chosen], self.fill.get(name, 0),
                         self.multiple_of)
            for name in chosen[0]
        }  # fmt: skip


def _stack(arrays: Sequence[Array], fill: float, multiple_of: int) -> Array:
    shapes = {array.shape for array in arrays}
    if len({len(shape) for shape in shapes}) > 1:
        raise InputError(f"examples of ranks {sorted({len(shape) for shape in shapes})} in a batch")
    if len(shapes) == 1 and multiple_of == 1:
        return np.stack(arrays)
    sizes = [max(axis) for axis in zip(*shapes, strict=True)]
    if sizes:
        sizes[0] = -(-sizes[0] // multiple_of) * multiple_of
    batch = np.full((len(arrays), *sizes), fill, arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return batch


@dataclass(frozen=True, slots=True)
class Stream:
    """Batches that an iterable yields, from its beginning again when it ends.

    A run that resumes skips what it had: the iterable has to give the same batches every time.

    Args:
        source: Yields batches: arrays by name. A list, or an object with `__iter__`; a generator
            can be read once and is refused.
    """

    source: Iterable[Batch]

    def __post_init__(self) -> None:
        if isinstance(self.source, Iterator):
            raise InputError(
                "an iterator can be read once: training reads the data again in every epoch",
                hint="give a list, or an object whose `__iter__` starts anew",
            )

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from number `first` on."""
        number = 0
        while True:
            before = number
            for batch in self.source:
                if number >= first:
                    yield batch
                number += 1
            if number == before:
                raise InputError("the data has no batches")


def text_examples(
    files: Iterable[Path],
    tokenizer: Tokenizer,
    *,
    max_tokens: int = 128,
    min_tokens: int = 4,
    encoding: str = "utf-8",
) -> list[Batch]:
    """Returns one example per piece of text: lines, those that are too long in several pieces.

    Args:
        files: Text.
        tokenizer: Called with pieces of text.
        max_tokens: Words per piece are chosen so that few pieces are longer; the rest is cut off.
        min_tokens: Shorter pieces are left out.
        encoding: Of the files.

    Raises:
        InputError: When a file is no such text, or there is none.
    """
    words_per_piece = max(1, max_tokens * 3 // 4)  # English text has about 1.3 tokens a word
    found: list[Batch] = []
    for file in files:
        for line in _text_of(file, encoding).splitlines():
            words = line.split()
            for start in range(0, len(words), words_per_piece):
                piece = tokenizer(" ".join(words[start : start + words_per_piece]))
                item = {name: np.asarray(ids, np.int64) for name, ids in piece.items()}
                if min(len(ids) for ids in item.values()) >= min_tokens:
                    found.append({name: ids[:max_tokens] for name, ids in item.items()})
    if not found:
        raise InputError(f"no text of at least {min_tokens} tokens in the files")
    return found


def _text_of(file: Path, encoding: str) -> str:
    try:
        return file.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        message = f"`{file}` is no {encoding} text: {error}"
        raise InputError(message, hint="give its `encoding`") from error


def npz_examples(files: Iterable[Path]) -> list[Batch]:
    """Returns the examples of `.npz` files, whose arrays have the same first axis: one each."""
    found: list[Batch] = []
    for file in files:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(counts) != 1 or counts == {0}:
            raise InputError(
                f"`{file}`: first axes of {sorted(counts)}",
                hint="every array needs the same number of examples along its first axis",
            )
        found += [{name: a[i] for name, a in arrays.items()} for i in range(counts.pop())]
    return found


def image_examples(
    folder: Path,
    name: str,
    size: tuple[int, int],
    *,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    label: str = "label",
) -> list[Batch]:
    """Returns the images of a folder as f32[3, H, W]; subfolders, in order, are the labels.

    Args:
        folder: Images, or one folder of images per class.
        name: Input that takes them.
        size: Height and width.
        mean: Subtracted from values in [0, 1], per channel.
        std: Divides them.
        label: Entry for the number of the class, where there are subfolders.

    Raises:
        UnsupportedError: When Pillow is missing.
        InputError: When there is no image.
    """
    try:
        from PIL import Image  # an extra that only images need
    except ImportError as error:
        message = "images need Pillow"
        raise UnsupportedError(message, hint="install it: `pip install pillow`") from error
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    pairs = [(file, idx) for idx, each in enumerate(classes) for file in sorted(each.iterdir())]
    pairs = pairs or [(file, -1) for file in sorted(folder.iterdir())]
    found: list[Batch] = []
    for file, idx in pairs:
        if file.suffix.lower() not in _IMAGES:
            continue
        with Image.open(file) as image:
            resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized, np.float32) / 255
        scaled = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        item: dict[str, Array] = {name: np.ascontiguousarray(scaled.transpose(2, 0, 1))}
        if idx >= 0:
            item[label] = np.asarray(idx, np.int64)
        found.append(item)
    if not found:
        raise InputError(f"`{folder}` has no image ({', '.join(sorted(_IMAGES))})")
    return found
