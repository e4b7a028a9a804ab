"""Rows of constant matrices, read from where they lie."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import InputError
from regraft.ir.matrix_rows import rows_of
from regraft.ir.steps import Cast, Literal, Mul, Source, Transpose
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight

MATRIX = np.random.default_rng(0).standard_normal((6, 5)).astype(ml_dtypes.bfloat16)


@pytest.fixture
def held(tmp_path: Path) -> MappedWeight:
    (tmp_path / "data").write_bytes(b"head" * 4 + MATRIX.tobytes())
    return MappedWeight(tmp_path / "data", 16, DType.BF16, MATRIX.shape)


def test_rows_of_a_file_are_read_without_a_map_of_it(held: MappedWeight) -> None:
    rows = rows_of(held)
    assert not rows.transposed
    assert rows.shape == (6, 5)
    found = rows.read(2, 5)
    assert not isinstance(found, np.memmap)
    assert (found == MATRIX[2:5]).all()
    assert rows.read(3, 3).shape == (0, 5)


def test_a_transposed_matrix_is_read_as_it_lies(held: MappedWeight) -> None:
    wide = Cast(Transpose(Source("w", held), (1, 0)), DType.F32)
    rows = rows_of(DerivedWeight(wide))
    assert rows.transposed
    assert rows.shape == (6, 5)
    assert rows.read(1, 4).dtype == np.float32
    assert (rows.read(1, 4) == MATRIX[1:4].astype(np.float32)).all()


def test_two_transpositions_are_none(held: MappedWeight) -> None:
    twice = Transpose(Cast(Transpose(Source("w", held), (1, 0)), DType.F32), (1, 0))
    rows = rows_of(DerivedWeight(twice))
    assert not rows.transposed
    assert (rows.read(0, 2) == MATRIX[:2].astype(np.float32)).all()


def test_rows_of_a_computed_matrix_are_computed(held: MappedWeight) -> None:
    factor = np.arange(6, dtype=np.float32)[:, None].astype(ml_dtypes.bfloat16)
    scaled = DerivedWeight(Mul(Source("w", held), Literal.of(factor)))
    assert (rows_of(scaled).read(2, 4) == scaled.numpy()[2:4]).all()


def test_rows_in_memory_are_a_view() -> None:
    array = np.arange(12.0).reshape(4, 3)
    found = rows_of(ArrayWeight(array)).read(1, 3)
    assert np.shares_memory(found, array)


def test_a_file_that_is_too_short_is_an_error(held: MappedWeight) -> None:
    with held.path.open("r+b") as file:
        file.truncate(40)
    short = MappedWeight(held.path, 16, DType.BF16, MATRIX.shape)
    with pytest.raises(InputError, match="truncated"):
        rows_of(short).read(0, 6)
