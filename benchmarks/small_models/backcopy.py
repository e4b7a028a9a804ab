"""Bigram-Backcopy: a language of characters in which an attention head mostly has nothing to do.

The next character follows from the last, as pairs of the corpus do; behind a vowel it is, nine
times in ten, the character before the vowel once more. So a head that copies has to look at one
place behind vowels, and must add nothing elsewhere: there it parks its weight on the mark that
every text begins with (Guo et al., Active-Dormant Attention Heads, 2024, section 2). The
probabilities of the language are known: models learn them, and losses are taken against them,
without the noise of drawn characters.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.small_models import corpus

Array = NDArray[Any]

LENGTH = 32
"""Tokens of a text: the mark, 0, and characters."""
SIZE = 41
"""Tokens there are: the mark and the most frequent characters of the corpus."""
_TRIGGERS = "aeiou"
_COPIED = 0.9
_NEVER_SEEN = 0.01
"""Counts that a pair has at least: none is impossible."""
_HELD_OUT_SEED = 999


@cache
def _language() -> tuple[Array, Array]:
    """Returns the probability of the next token by the last, f64[SIZE, SIZE], and the triggers."""
    text, _ = corpus.texts()
    size = len(corpus.ALPHABET)
    codes = text[:-1].astype(np.int64) * size + text[1:]
    counts = np.bincount(codes, minlength=size * size).reshape(size, size)
    often = np.argsort(-counts.sum(1), kind="stable")
    kept = often[often != 0][: SIZE - 1]  # 0 is what the alphabet does not have
    found = np.zeros((SIZE, SIZE))
    found[1:, 1:] = counts[np.ix_(kept, kept)] + _NEVER_SEEN
    found[0] = np.append(0, found[1:].sum(1))
    triggers = np.array([False, *(corpus.ALPHABET[i] in _TRIGGERS for i in kept)])
    return found / found.sum(1, keepdims=True), triggers


def draw(seed: int, step: int, count: int) -> Array:
    """Returns texts, i64[count, LENGTH]: the batch of a step."""
    pairs, triggers = _language()
    ends = pairs.cumsum(1)
    rng = np.random.default_rng([seed, step])
    ids = np.zeros((count, LENGTH), np.int64)
    for place in range(1, LENGTH):
        last = ids[:, place - 1]
        drawn = (ends[last] < rng.random((count, 1))).sum(1).clip(1, SIZE - 1)
        copied = triggers[last] & (rng.random(count) < _COPIED) & (place > 2)
        ids[:, place] = np.where(copied, ids[:, place - 2], drawn)
    return ids


def probabilities(ids: Array) -> Array:
    """Returns those of the token behind each one, f64[count, LENGTH, SIZE]."""
    pairs, triggers = _language()
    found = pairs[ids]
    copies = triggers[ids]
    copies[:, :2] = False  # behind a vowel that is the first character there is none to copy
    rows, places = np.nonzero(copies)
    found[rows, places] *= 1 - _COPIED
    found[rows, places, ids[rows, places - 1]] += _COPIED
    return found


def held_out(count: int, batch_size: int) -> Iterator[dict[str, Array]]:
    """Yields texts that no training of a small seed has drawn."""
    for step in range(count // batch_size):
        yield {"input_ids": draw(_HELD_OUT_SEED, step, batch_size)}
