"""Weights that are made entry by entry: whole, in windows, and as the bytes of a file."""

from __future__ import annotations

import numpy as np

from regraft.ir.derive import DerivedWeight, source_names
from regraft.ir.packed_parts import packed_parts
from regraft.ir.stacked import StackedWeight
from regraft.ir.steps import Concat, Source, Transpose
from regraft.ir.types import DType

ARRAY = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


def _stack(made: list[int]) -> StackedWeight:
    def entry(idx: int) -> np.ndarray:
        made.append(idx)
        return ARRAY[idx]

    return StackedWeight(DType.F32, ARRAY.shape, entry, ("a", "b"))


def test_stack_is_the_stack_of_its_entries() -> None:
    made: list[int] = []
    weight = _stack(made)
    assert made == []
    np.testing.assert_array_equal(weight.numpy(), ARRAY)
    assert weight.nbytes == ARRAY.nbytes
    assert source_names("c", weight) == ["a", "b"]


def test_packed_parts_of_a_stack_are_its_entries() -> None:
    parts = [bytes(part) for part in packed_parts(_stack([]))]
    assert parts == [entry.tobytes() for entry in ARRAY]


def test_windows_of_a_derived_stack_make_only_what_they_read() -> None:
    made: list[int] = []
    source = Source("w", _stack(made))
    turned = DerivedWeight(Transpose(source, (0, 2, 1)))
    np.testing.assert_array_equal(
        turned.read(((1, 2), (0, 5), (1, 3))), ARRAY[1:2].transpose(0, 2, 1)[:, :, 1:3]
    )
    assert made == [1]
    both = DerivedWeight(Concat((source, source), 1))
    np.testing.assert_array_equal(both.numpy(), np.concatenate([ARRAY, ARRAY], 1))
    assert turned.read(((1, 1), (0, 5), (0, 4))).shape == (0, 5, 4)
