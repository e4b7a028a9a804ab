"""How alike two models' embeddings are, and how well they agree with people on what is alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regraft.ir.errors import CheckError, InputError
from regraft.passes.quality.correlation import spearman

Array = np.ndarray[Any, Any]
Pooling = Literal["mean", "first", "last"]

MAX_PAIRED = 1024
"""Items whose pairs are compared: half a million pairs; the cosines are those of all items."""


@dataclass(frozen=True, slots=True)
class EmbeddingQuality:
    """How alike the embeddings of two models are.

    Args:
        count: Number of items (texts).
        mean: Mean over the items of the cosine between the two embeddings of an item.
        worst: The smallest of these cosines.
        worst_idx: The item that has it.
        pair_spearman: Spearman correlation, over pairs of items, between the cosine similarities
            of the pair in one model and in the other; None for fewer than three items.
        num_pairs: Pairs of it: those of the first `MAX_PAIRED` items.
        human_reference: Spearman correlation between the first model's cosine similarities of pairs
            and people's, where those were given.
        human_candidate: The same of the second model.
    """

    count: int
    mean: float
    worst: float
    worst_idx: int
    pair_spearman: float | None
    num_pairs: int
    human_reference: float | None = None
    human_candidate: float | None = None


class EmbeddingMeter:
    """Collects the embeddings that two models give the same items, batch by batch.

    Memory: two numbers per item, and both embeddings of the first `max_paired` items.

    Args:
        max_paired: Items whose pairs are compared.
    """

    def __init__(self, max_paired: int = MAX_PAIRED) -> None:
        self._max_paired = max_paired
        self._cosines: list[Array] = []
        self._kept: tuple[list[Array], list[Array]] = ([], [])
        self._count = 0

    def update(self, reference: Array, candidate: Array) -> None:
        """Adds a batch: f[B, D] of the first model, f[B, E] of the second.

        The sizes differ where a pass made embeddings shorter: then only pairs are compared.

        Raises:
            CheckError: For a vector that is not finite or of length zero, which has no direction.
        """
        units = [
            _units(array, which, self._count)
            for array, which in ((reference, "first"), (candidate, "second"))
        ]
        a, b = units
        if len(a) != len(b):
            raise InputError(f"{len(a)} embeddings of one model, {len(b)} of the other")
        for kept, unit in zip(self._kept, units, strict=True):
            if kept and kept[0].shape[1] != unit.shape[1]:
                raise InputError(
                    f"embeddings of {kept[0].shape[1]} numbers and of {unit.shape[1]}: what is "
                    "measured has no fixed size per item",
                    hint="name the output that holds them: `embedding{output=NAME}`",
                )
        if a.shape == b.shape:
            self._cosines.append(np.einsum("bd,bd->b", a, b))
        room = max(0, self._max_paired - self._count)
        for kept, unit in zip(self._kept, units, strict=True):
            kept.append(unit[:room].astype(np.float32))
        self._count += len(a)

    def result(self, human: Array | None = None) -> EmbeddingQuality:
        """Returns what was found.

        Args:
            human: People's similarities of the first N items, f[N, N]; the part above the diagonal
                is read.

        Raises:
            InputError: When there was no item, or `human` has another size.
        """
        if not self._count:
            raise InputError("there is no item to embed")
        cosines = np.concatenate(self._cosines) if self._cosines else np.full(self._count, np.nan)
        pairs = [_pair_similarities(np.concatenate(part)) for part in self._kept]
        spoken: list[float | None] = [None, None]
        if human is not None:
            people = self._checked(human)
            spoken = [spearman(_pair_similarities(np.concatenate(part)[: len(human)]), people)
                      for part in self._kept]  # fmt: skip
        return EmbeddingQuality(
            self._count, float(cosines.mean()), float(cosines.min()), int(cosines.argmin()),
            spearman(*pairs) if len(pairs[0]) > 1 else None, len(pairs[0]), *spoken,
        )  # fmt: skip

    def _checked(self, human: Array) -> Array:
        size = len(human)
        if human.shape != (size, size) or not 2 < size <= min(self._count, self._max_paired):
            raise InputError(
                f"similarities of shape {list(human.shape)} for {self._count} items",
                hint="one row and one column per item, in their order",
            )
        above: Array = human[np.triu_indices(size, 1)]
        return above


def pooled(states: Array, mask: Array | None = None, how: Pooling = "mean") -> Array:
    """Returns one vector per item, f[B, D], of the states of its tokens.

    Args:
        states: f[B, S, D], or f[B, D] for vectors that are pooled already: they stay as they are.
        mask: i[B, S], nonzero for tokens that count; None for all.
        how: `mean` of the tokens that count, the `first` or the `last` of them.
    """
    if states.ndim == 2:
        return states
    states = states.astype(np.float64)
    if mask is None:
        mask = np.ones(states.shape[:2], np.int64)
    counts = (np.asarray(mask) != 0)[..., None]
    if how == "mean":
        means: Array = (states * counts).sum(1) / np.maximum(counts.sum(1), 1)
        return means
    counts = counts[..., 0]
    at = counts.argmax(1) if how == "first" else counts.shape[1] - 1 - counts[:, ::-1].argmax(1)
    chosen: Array = states[np.arange(len(states)), at]
    return chosen


def _units(array: Array, which: str, first: int) -> Array:
    wide = np.asarray(array, np.float64)
    if wide.ndim != 2:
        raise InputError(
            f"embeddings of shape {list(wide.shape)} of the {which} model",
            hint="one vector per item: pool the states of tokens",
        )
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not usable.all():
        raise CheckError(
            f"item {first + int(np.argmin(usable))} has an embedding of the {which} model that is "
            "zero or not finite"
        )
    units: Array = wide / norms
    return units


def _pair_similarities(units: Array) -> Array:
    """Returns the cosines of all pairs i < j, f[N (N - 1) / 2]."""
    wide = units.astype(np.float64)
    above: Array = (wide @ wide.T)[np.triu_indices(len(units), 1)]
    return above
