"""Batches that know what a step of training costs, over all turns of a run that was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.fixed import FixedBatches

_WRITTEN_EVERY = 10


@dataclass(slots=True)
class CountedBatches:
    """Batches that remember where their last reading began: after a checkpoint, not at 0.

    Args:
        data: The batches.
        pace: File that keeps CPU seconds and steps over all turns, beside the checkpoints.
        first: Where the last reading began.
    """

    data: FixedBatches
    pace: Path | None = None
    first: int = field(default=0)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from place `first` on, without end."""
        self.first = first
        if self.pace is None:
            yield from self.data.batches(first)
            return
        seconds, steps = self._kept()
        start = time.process_time()
        for number, batch in enumerate(self.data.batches(first)):
            if number and number % _WRITTEN_EVERY == 0:
                found = {"seconds": seconds + time.process_time() - start, "steps": steps + number}
                self.pace.parent.mkdir(parents=True, exist_ok=True)
                self.pace.write_text(json.dumps(found))
            yield batch

    def numbers(self, first: int = 0) -> Iterator[int]:
        """Yields the number of the batch at each place from `first` on."""
        return self.data.numbers(first)

    def seconds_of(self, steps: int) -> float:
        """Returns the CPU seconds of so many steps, at the pace of all that were made."""
        seconds, made = self._kept()
        return seconds / max(made, 1) * steps

    def _kept(self) -> tuple[float, int]:
        if self.pace is None or not self.pace.is_file():
            return 0.0, 0
        found = json.loads(self.pace.read_text())
        return float(found["seconds"]), int(found["steps"])
