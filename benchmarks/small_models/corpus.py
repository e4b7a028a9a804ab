"""The text that the character model learns: the sources of Python's standard library.

The library is on every machine that runs this. One file in twenty is held out, chosen by the hash
of its path, so that no line of a held-out file was trained on.
"""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Batch = Mapping[str, NDArray[Any]]

UNKNOWN = "\ufffd"
ALPHABET = (UNKNOWN, "\n", *map(chr, range(32, 127)))
"""Characters by id; all others are unknown."""

_LEFT_OUT = frozenset({
    "test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "__pycache__", "encodings",
    "ensurepip", "turtledemo", "pydoc_data",
})  # fmt: skip
"""Tests, generated tables, and what is not part of the library."""
_ONE_IN = 20
_TABLE = np.zeros(128, np.uint8)
_TABLE[[ord(each) for each in ALPHABET[1:]]] = np.arange(1, len(ALPHABET))


def encode(text: str) -> NDArray[np.uint8]:
    """Returns the ids of a text, u8[characters]; a tab is four spaces."""
    data = text.replace("\t", "    ").encode("ascii", "replace")
    return _TABLE[np.frombuffer(data, np.uint8)]


def decode(ids: Iterable[int]) -> str:
    """Returns the text of ids."""
    return "".join(ALPHABET[i] for i in ids)


@cache
def texts() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the ids of the files to train on, and of those that are held out."""
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[str], list[str]] = ([], [])
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root)
        if _LEFT_OUT.isdisjoint(place.parts):
            digest = hashlib.sha256(place.as_posix().encode()).digest()
            is_held_out = int.from_bytes(digest[:4], "big") % _ONE_IN == 0
            parts[is_held_out].append(file.read_text(encoding="utf-8", errors="replace"))
    train, held_out = ("\n".join(part) for part in parts)
    return encode(train), encode(held_out)


def digest() -> str:
    """Returns a hash of all of it: other versions of Python have other sources."""
    found = hashlib.sha256()
    for part in texts():
        found.update(part.tobytes())
    return found.hexdigest()


def training_batch(seed: int, step: int, batch_size: int, length: int) -> Batch:
    """Returns `input_ids` i64[batch_size, length] from random places: the batch of a step."""
    text, _ = texts()
    starts = np.random.default_rng([seed, step]).integers(0, len(text) - length, batch_size)
    return {"input_ids": text[starts[:, None] + np.arange(length)].astype(np.int64)}


def held_out_batches(count: int, batch_size: int, length: int) -> Iterator[Batch]:
    """Yields `count` windows of the held-out files, evenly spread, in batches with their mask."""
    _, text = texts()
    starts = np.linspace(0, len(text) - length - 1, count).astype(np.int64)
    for first in range(0, count, batch_size):
        rows = starts[first : first + batch_size, None] + np.arange(length)
        ids = text[rows].astype(np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}
