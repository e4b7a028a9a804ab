"""Batches that know at which step a run that was stopped went on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.fixed import FixedBatches


@dataclass(slots=True)
class CountedBatches:
    """Batches that remember where their last reading began: after a checkpoint, not at 0.

    Args:
        data: The batches.
        first: Where the last reading began.
    """

    data: FixedBatches
    first: int = field(default=0)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from place `first` on, without end."""
        self.first = first
        return self.data.batches(first)

    def numbers(self, first: int = 0) -> Iterator[int]:
        """Yields the number of the batch at each place from `first` on."""
        return self.data.numbers(first)
