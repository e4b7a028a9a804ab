"""Packed bytes of weights in memory, in files and computed."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from regraft.ir import packed_parts as reading
from regraft.ir.errors import InputError
from regraft.ir.packed_parts import packed_parts
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight, pack


def joined(weight: Weight) -> bytes:
    return b"".join(bytes(part) for part in packed_parts(weight))


def test_a_weight_in_a_file_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PART_BYTES", 64)
    array = np.arange(50, dtype=np.float32)
    (tmp_path / "data").write_bytes(b"head" * 4 + array.tobytes())
    weight = MappedWeight(tmp_path / "data", 16, DType.F32, array.shape)
    assert [len(part) for part in packed_parts(weight)] == [64, 64, 64, 8]
    assert joined(weight) == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.float32(2.5).reshape(()),
        np.zeros((0, 3), np.float64),
        np.arange(5).astype(ml_dtypes.int4),
        np.array([True, False]),
    ],
    ids=["transposed", "scalar", "empty", "4-bit", "bool"],
)
def test_a_weight_in_memory_is_packed(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> None:
    weight = ArrayWeight(array)
    assert joined(weight) == pack(array, weight.dtype)


def test_a_file_that_was_truncated_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(10))
    with pytest.raises(InputError, match="truncated"):
        list(packed_parts(MappedWeight(path, 0, DType.F32, (4,))))
