"""Data that quality is measured on: texts, arrays, images, read batch by batch.

Each is an object that can be iterated over again and again; nothing is kept in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backends.huggingface.companions import POOLING
from regraft.frontends.huggingface import tokenizers
from regraft.frontends.huggingface.checkpoint import read_json
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.module import Module
from regraft.ir.types import TensorType
from regraft.metrics import Metric
from regraft.passes.quality.measure import LABELS, MASK, TOKENS
from regraft.samples import read_samples

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]

TOKENIZER = tokenizers.TOKENIZER
PROCESSOR = "preprocessor_config.json"
_TYPES = "token_type_ids"
_MAX_TOKENS = 128
_PIECE_CHARACTERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of `.npz` files, one batch each.

    Args:
        files: The files.
        module: The model, of which a batch must have the inputs.
    """

    files: Sequence[Path]
    module: Module

    def __iter__(self) -> Iterator[Batch]:
        names = [str(value.name) for value in self.module.graph.inputs]
        for file in self.files:
            (arrays,) = read_samples(file)
            absent = [name for name in names if name not in arrays]
            if absent:
                raise InputError(
                    f"`{file}` has no `{absent[0]}`", hint=f"the model takes {', '.join(names)}"
                )
            yield {name: arrays[name] for name in (*names, LABELS) if name in arrays}


@dataclass(frozen=True, slots=True)
class Texts:
    """The lines of a text, each one item; or, for predictions, the text in windows of tokens.

    Args:
        file: UTF-8; what is not is replaced by U+FFFD.
        tokenizer: The content of a `tokenizer.json`.
        inputs: Sizes of the model's inputs by name, None where they change.
        batch: Items that run at a time.
        max_tokens: Longer lines are cut off; the length of a window.
        windows: Whether the whole text is cut into windows.
        limit: Lines or windows that are read at most.
    """

    file: Path
    tokenizer: Any
    inputs: Mapping[str, tuple[int | None, ...]]
    batch: int
    max_tokens: int
    windows: bool
    limit: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        if TOKENS not in self.inputs:
            raise InputError(
                f"`{self.file}` is text, and the model has no input `{TOKENS}`",
                hint=f"give `.npz` files with {', '.join(self.inputs)}",
            )
        rows, length = (*self.inputs[TOKENS], None, None)[:2]
        items = islice(self._windows(length) if self.windows else self._lines(length), self.limit)
        step = rows or (self.batch if MASK in self.inputs or self.windows else 1)
        while chosen := list(islice(items, step)):
            # rows that stand for nothing, where the model has a fixed number of them
            padding: list[list[int]] = [[] for _ in range((rows or len(chosen)) - len(chosen))]
            yield self._padded([*chosen, *padding], length)

    def _lines(self, length: int | None) -> Iterator[list[int]]:
        limit = min(self.max_tokens, length or self.max_tokens)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(limit)
        with self.file.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield self.tokenizer.encode(line.rstrip("\n")).ids

    def _windows(self, length: int | None) -> Iterator[list[int]]:
        """Yields the tokens of the text in windows, each after the token that begins a text."""
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        begin = self.tokenizer.encode("").ids
        start = begin if len(begin) == 1 else []  # two stand around a text, as in an encoder
        size = (length or self.max_tokens) - len(start)
        rest: list[int] = []
        for piece in self._pieces():
            rest += self.tokenizer.encode(piece, add_special_tokens=False).ids
            whole = len(rest) // size * size
            for first in range(0, whole, size):
                yield start + rest[first : first + size]
            del rest[:whole]
        if len(rest) > 1:
            yield start + rest

    def _pieces(self) -> Iterator[str]:
        with self.file.open(encoding="utf-8", errors="replace") as file:
            while lines := file.readlines(_PIECE_CHARACTERS):
                yield "".join(lines)

    def _padded(self, items: Sequence[list[int]], length: int | None) -> Batch:
        longest = length or max(map(len, items))
        ids, mask = np.zeros((2, len(items), longest), np.int64)
        for row, counts, item in zip(ids, mask, items, strict=True):
            row[: len(item)] = item
            counts[: len(item)] = 1
        if self.inputs.keys().isdisjoint({MASK}) and not self.windows and not mask.all():
            raise UnsupportedError(
                f"texts of fixed length {length}, and the model takes no `{MASK}`",
                hint="give `.npz` files",
            )
        found = {TOKENS: ids, MASK: mask}
        if _TYPES in self.inputs:
            found[_TYPES] = np.zeros_like(ids)
        strange = [name for name in self.inputs if name not in found]
        if strange:
            raise InputError(
                f"`{self.file}` is text, and the model takes `{strange[0]}` too",
                hint="give `.npz` files with all inputs",
            )
        return found


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a folder, resized and scaled as the model's processor does it.

    Args:
        folder: Images, or one folder of images per class, classes in order of their names.
        name: The input that takes them, f32[B, C, H, W].
        size: Channels, height and width.
        mean: Subtracted from values in [0, 1], per channel.
        std: Divides them.
        batch: Images that run at a time.
        is_fixed: Whether the model takes no other number: what fills no batch is left out.
        limit: Images that are read at most.
    """

    folder: Path
    name: str
    size: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    batch: int
    is_fixed: bool = False
    limit: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        pairs = islice(_image_files(self.folder), self.limit)
        while chosen := list(islice(pairs, self.batch)):
            if self.is_fixed and len(chosen) < self.batch:
                return
            pixels = np.stack([self._read(file) for file, _ in chosen])
            labels = np.array([label for _, label in chosen], np.int64)
            yield {self.name: pixels} | ({LABELS: labels} if labels.min() >= 0 else {})

    def _read(self, file: Path) -> Array:
        try:
            from PIL import Image, UnidentifiedImageError  # an extra that only images need
        except ImportError as error:
            message = "images need Pillow"
            raise UnsupportedError(message, hint="`pip install pillow`") from error
        channels, height, width = self.size
        try:
            with Image.open(file) as image:
                colours = image.convert("L" if channels == 1 else "RGB")
                resized = colours.resize((width, height), Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"`{file}` is no image that can be read: {error}") from error
        pixels = np.asarray(resized, np.float32).reshape(height, width, channels) / 255
        scaled = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))


_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


def _image_files(folder: Path) -> list[tuple[Path, int]]:
    """Returns the images with the number of their class, -1 where there are no classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    pairs = [(file, idx) for idx, each in enumerate(classes) for file in sorted(each.iterdir())]
    pairs = pairs or [(file, -1) for file in sorted(folder.iterdir())]
    return [(file, idx) for file, idx in pairs if file.suffix.lower() in _IMAGES]


def open_texts(
    file: Path, module: Module, tokenizer: Path, options: Metric, *, windows: bool
) -> Texts:
    """Returns a text as data for a model.

    Args:
        file: The text.
        module: The model.
        tokenizer: Its `tokenizer.json`.
        options: How much is read, and how.
        windows: Whether the text is cut into windows.

    Raises:
        InputError: When the tokenizer cannot be read.
        UnsupportedError: When the package `tokenizers` is missing.
    """
    made = tokenizers.read_tokenizer(tokenizer)
    stated = (made.truncation or {}).get("max_length", _MAX_TOKENS)
    default = 2 * _MAX_TOKENS if windows else stated
    return Texts(
        file, made, input_sizes(module), options.batch, options.max_tokens or default, windows,
        options.limit,
    )  # fmt: skip


def open_images(folder: Path, module: Module, places: Sequence[Path], options: Metric) -> Images:
    """Returns a folder of images as data for a model.

    Args:
        folder: The images.
        module: The model, which has one input of four axes.
        places: Folders that may have a `preprocessor_config.json`.
        options: How much is read, and how.

    Raises:
        InputError: When there is no image, or the model takes none.
    """
    if not _image_files(folder):
        raise InputError(
            f"`{folder}` has no `.npz` file and no image ({', '.join(sorted(_IMAGES))})"
        )
    sizes = input_sizes(module)
    if len(sizes) != 1 or len(next(iter(sizes.values()))) != 4:
        raise InputError(
            f"`{folder}` holds images, and the model takes {', '.join(sizes)}",
            hint="give `.npz` files with all inputs",
        )
    ((name, (rows, channels, height, width)),) = sizes.items()
    file = next((p / PROCESSOR for p in places if (p / PROCESSOR).is_file()), None)
    config: Mapping[str, Any] = {} if file is None else read_json(file)
    stated = config.get("size")
    stated = stated if isinstance(stated, Mapping) else {}
    height = height or stated.get("height") or 224
    width = width or stated.get("width") or 224
    channels = channels or 3
    mean = config.get("image_mean") or (0.485, 0.456, 0.406)[:channels]
    std = config.get("image_std") or (0.229, 0.224, 0.225)[:channels]
    size = (channels, height, width)
    return Images(
        folder, name, size, mean, std, rows or options.batch, rows is not None, options.limit
    )


def input_sizes(module: Module) -> dict[str, tuple[int | None, ...]]:
    """Returns the sizes of a module's inputs by name, None for those that may change."""
    return {
        str(value.name): tuple(size if isinstance(size, int) else None for size in shape)
        for value in module.graph.inputs
        for shape in [value.type.shape if isinstance(value.type, TensorType) else ()]
        if shape is not None
    }


def pooling_of(folder: Path) -> str | None:
    """Returns how a folder of sentence-transformers says that tokens are pooled.

    Raises:
        InputError: When it says a way that is not known here.
    """
    file = folder / POOLING / "config.json"
    if not file.is_file():
        return None
    chosen = [key for key, value in read_json(file).items() if value is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first",
             "pooling_mode_lasttoken": "last"}  # fmt: skip
    found = [known[key] for key in chosen if key in known]
    if len(found) != 1:
        raise InputError(
            f"`{file}` pools by {', '.join(chosen) or 'nothing'}", hint="give `pooling=mean`"
        )
    return found[0]


def read_matrix(path: Path) -> Array:
    """Returns a square matrix of numbers from a text file, f64[N, N].

    Raises:
        InputError: When it is none.
    """
    try:
        matrix = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"`{path}` holds no matrix of numbers: {error}") from error
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"`{path}` holds {list(matrix.shape)} numbers, no square matrix")
    return matrix
