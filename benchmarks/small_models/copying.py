"""The copy task: a random string, a separator, and the string again.

Nothing but the text before says what comes next: a model without memory over the whole distance
stays at chance, one in the number of letters.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = Mapping[str, NDArray[Any]]

PAD, SEPARATOR = 0, 1
FIRST_LETTER = 2
NUM_LETTERS = 30
IGNORED = -100
"""Label of positions that do not count."""

_HELD_OUT = 1 << 20


def training_batch(seed: int, step: int, batch_size: int, shortest: int, longest: int) -> Batch:
    """Returns strings of random lengths, filled up at the right: the batch of a step.

    `input_ids` i64[B, 2 * longest + 1], and `labels` of the same shape: the token at the position,
    `IGNORED` outside of the copy.
    """
    return _batch(np.random.default_rng([seed, step]), batch_size, shortest, longest)


def held_out(count: int, batch_size: int, length: int) -> Iterator[Batch]:
    """Yields `count` strings of one length from a seed that no training has, with their mask."""
    rng = np.random.default_rng([_HELD_OUT, length])
    for first in range(0, count, batch_size):
        batch = _batch(rng, min(batch_size, count - first), length, length)
        yield {**batch, "attention_mask": (batch["input_ids"] != PAD).astype(np.int64)}


def _batch(rng: np.random.Generator, rows: int, shortest: int, longest: int) -> Batch:
    width = 2 * longest + 1
    ids, labels = np.full((2, rows, width), PAD, np.int64)
    labels[:] = IGNORED
    for row, label in zip(ids, labels, strict=True):
        length = int(rng.integers(shortest, longest + 1))
        letters = rng.integers(FIRST_LETTER, FIRST_LETTER + NUM_LETTERS, length)
        row[: 2 * length + 1] = (*letters, SEPARATOR, *letters)
        label[length + 1 : 2 * length + 1] = letters
    return {"input_ids": ids, "labels": labels}
