"""The copy probe: what comes again can be told only from what came before, at any distance.

A random string of tokens is repeated; from its second time on, the next token is known to a model
that finds the last time it saw this one. A model whose memory ends before the period is at chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.check.runners import Runner
from regraft.passes.recovery.data import Batch

Array = np.ndarray[Any, Any]

_PERIODS = 3
_SEED = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Strings that repeat.

    Args:
        period: Tokens of a string: more than all windows together reach.
        vocabulary: Tokens are drawn from 0 to this, or from `first` on.
        first: The first token that is drawn.
        rows: Strings.
    """

    period: int
    vocabulary: int
    first: int = 0
    rows: int = 32

    @property
    def chance(self) -> float:
        """Accuracy of a model without memory."""
        return 1 / (self.vocabulary - self.first)

    def batches(self) -> Iterator[Batch]:
        """Yields the strings with the mask of all ones."""
        rng = np.random.default_rng(_SEED)
        made = rng.integers(self.first, self.vocabulary, (self.rows, self.period))
        ids = np.tile(made, (1, _PERIODS)).astype(np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def accuracy(self, run: Runner, output: str = "logits") -> float:
        """Returns how often the next token is found, from the string's second time on."""
        right = count = 0
        for batch in self.batches():
            ids = batch["input_ids"]
            best = np.argmax(np.asarray(run(batch)[output]), axis=-1)[:, self.period - 1 : -1]
            right += int((best == ids[:, self.period :]).sum())
            count += best.size
        return right / count
