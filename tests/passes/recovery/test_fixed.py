"""Batches that come back: order, numbers, lengths."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from regraft.ir.errors import InputError
from regraft.passes.recovery.data import Batch, Stream
from regraft.passes.recovery.fixed import FixedBatches, Numbered, batches_by_length


def _examples(lengths: list[int]) -> list[Batch]:
    return [
        {"ids": np.full(length, idx + 1), "mask": np.ones(length, np.int64)}
        for idx, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("first", [0, 2, 3, 7])
@pytest.mark.parametrize("seed", [0, None])
def test_a_place_always_has_the_same_batch(first: int, seed: int | None) -> None:
    data = FixedBatches([{"x": np.array([i])} for i in range(3)], seed)
    whole = [int(batch["x"][0]) for batch in islice(data.batches(), 20)]
    assert [int(batch["x"][0]) for batch in islice(data.batches(first), 20 - first)] == whole[
        first:
    ]
    assert list(islice(data.numbers(first), 20 - first)) == whole[first:]
    assert all(sorted(whole[i : i + 3]) == [0, 1, 2] for i in range(0, 18, 3))
    assert (whole[:18] == [0, 1, 2] * 6) == (seed is None)


def test_only_batches_that_come_back_have_numbers() -> None:
    batches = [{"x": np.zeros(1)}]
    assert isinstance(FixedBatches(batches), Numbered)
    assert not isinstance(Stream(batches), Numbered)
    with pytest.raises(InputError, match="no batches"):
        FixedBatches([])


def test_texts_of_like_length_share_a_batch() -> None:
    lengths = [9, 2, 3, 12, 2, 30, 3]
    data = batches_by_length(_examples(lengths), 12, seed=None)
    shapes = [batch["ids"].shape for batch in data.items]
    assert shapes == [(4, 3), (1, 9), (1, 12), (1, 30)]  # the longest alone has more than 12
    texts = sorted(int(row[0]) for batch in data.items for row in batch["ids"])
    assert texts == [1, 2, 3, 4, 5, 6, 7]
    for batch in data.items:
        np.testing.assert_array_equal(batch["ids"] != 0, batch["mask"] != 0)


def test_what_fills_up_is_chosen_by_name() -> None:
    (batch,) = batches_by_length(_examples([1, 2]), 4, fill={"ids": -1}).items
    np.testing.assert_array_equal(batch["ids"], [[1, -1], [2, 2]])
    np.testing.assert_array_equal(batch["mask"], [[1, 0], [1, 1]])
