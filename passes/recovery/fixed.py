"""Batches that are the same ones in every epoch: what is computed of one once can be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from regraft.ir.errors import InputError
from regraft.passes.recovery.data import Batch, Data, Examples


@runtime_checkable
class Numbered(Data, Protocol):
    """Batches that come back: places with the same number hold the same batch."""

    def numbers(self, first: int = 0) -> Iterator[int]:
        """Yields the number of the batch at each place from `first` on."""


@dataclass(frozen=True, slots=True)
class FixedBatches:
    """Batches whose order is drawn anew in every epoch, and which stay what they are.

    Args:
        items: The batches: arrays by name.
        seed: Seed of the order; None keeps the order that they have.
    """

    items: Sequence[Batch]
    seed: int | None = 0

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError("the data has no batches")

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from place `first` on, without end."""
        for number in self.numbers(first):
            yield self.items[number]

    def numbers(self, first: int = 0) -> Iterator[int]:
        """Yields the number of the batch at each place from `first` on."""
        epoch, offset = divmod(first, len(self.items))
        while True:
            order = np.arange(len(self.items))
            if self.seed is not None:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            yield from map(int, islice(order, offset, None))
            epoch, offset = epoch + 1, 0


def batches_by_length(
    examples: Sequence[Batch],
    max_elements: int,
    *,
    seed: int | None = 0,
    fill: Mapping[str, float] | None = None,
) -> FixedBatches:
    """Returns batches of examples of like length, so that little is filled up.

    Args:
        examples: Arrays by name, without batch axis.
        max_elements: Of a batch: examples times the longest first axis; one example may have more.
        seed: Seed of the order of the batches.
        fill: What shorter examples are filled up with at their end, by name; default 0.
    """
    order = sorted(range(len(examples)), key=lambda idx: _length(examples[idx]))  # stable
    groups: list[list[Batch]] = []
    for idx in order:
        longest = _length(examples[idx])
        if not groups or (len(groups[-1]) + 1) * longest > max_elements:
            groups.append([])
        groups[-1].append(examples[idx])
    return FixedBatches(
        [Examples(group, len(group), None, fill or {}).collate(group) for group in groups], seed
    )


def _length(example: Batch) -> int:
    return max((np.shape(array)[0] for array in example.values() if np.ndim(array) > 0), default=1)
