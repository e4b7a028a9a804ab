"""Rounding a weight as it is read gives what rounding the whole of it gives."""

import ml_dtypes
import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import UsageError
from regraft.ir.matrix_rows import rows_of
from regraft.ir.spill import stored
from regraft.ir.steps import Cast, Source, Transpose
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight
from regraft.passes.quantization import rounded_files
from regraft.passes.quantization.coded import coded
from regraft.passes.quantization.encoding import rounded_rows
from regraft.passes.quantization.formats import INT3, INT4, INT8, UINT2, UINT4, UINT8
from regraft.passes.quantization.methods import encode
from regraft.passes.quantization.rounded_files import (
    can_round_by_parts,
    round_by_parts,
    round_table,
)

SHAPES = ((96, 50, 32), (1000, 70, 32), (300, 600, 64), (50, 40, 16))
"""K, N and the group: whole groups, a shorter last one, more columns than a part has."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Cuts matrices of tests into several parts both ways."""
    monkeypatch.setattr(rounded_files, "_READ_BYTES", 1 << 15)
    monkeypatch.setattr(rounded_files, "_PART", 1 << 12)
    monkeypatch.setattr(rounded_files, "_SIDE", 1 << 5)


def laid(matrix, transposed, folder):
    """Returns the weight, lying as the transpose where asked."""
    if not transposed:
        return ArrayWeight(matrix)
    held = stored(np.ascontiguousarray(matrix.T), folder, ("w",))
    return DerivedWeight(Transpose(Source("w", held), (1, 0)))


@pytest.mark.parametrize("transposed", [False, True], ids=["inputs", "outputs"])
@pytest.mark.parametrize("method", ["round", "search"])
@pytest.mark.parametrize("fmt", [UINT4, INT4, UINT2, INT3, UINT8, INT8], ids=lambda f: f.name)
def test_parts_give_what_the_whole_gives(fmt, method, transposed, tmp_path):
    for k, n, group in SHAPES:
        matrix = np.random.default_rng(k).standard_normal((k, n)).astype(np.float32)
        weight = laid(matrix, transposed, tmp_path)
        assert can_round_by_parts(fmt, group, k, method)
        found, error = round_by_parts("w", rows_of(weight), fmt, group, method, tmp_path)
        whole = encode(matrix, fmt, group, method, None)
        assert found.codes.dtype is fmt.dtype
        kept = coded("w", whole, tmp_path, per_channel=False)
        assert (found.codes.numpy() == kept.codes.numpy()).all()
        assert (found.scale.numpy() == whole.grid.scale).all()
        assert (found.zero_point is None) == (whole.grid.zero_point is None)
        if found.zero_point is not None:
            assert (found.zero_point.numpy().astype(np.float32) == whole.grid.zero_point).all()
        assert found.num_bytes == whole.num_bytes
        lost = np.linalg.norm(whole.decode().astype(np.float64) - matrix)
        # sums of f32 over parts of at most 2 ** 13 numbers
        assert error == pytest.approx(lost / np.linalg.norm(matrix), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_halves_are_widened_part_by_part(dtype, tmp_path):
    matrix = np.random.default_rng(1).standard_normal((128, 40)).astype(dtype)
    path = tmp_path / "data"
    path.write_bytes(np.ascontiguousarray(matrix.T).tobytes())
    kind = DType.F16 if dtype is np.float16 else DType.BF16
    held = MappedWeight(path, 0, kind, matrix.T.shape)
    weight = DerivedWeight(Cast(Transpose(Source("w", held), (1, 0)), DType.F32))
    found, _ = round_by_parts("w", rows_of(weight), UINT4, 32, "round", tmp_path)
    whole = encode(matrix.astype(np.float32), UINT4, 32, "round", None)
    assert (found.codes.numpy().astype(np.uint8) == whole.codes).all()


def test_what_needs_the_whole_matrix_is_not_rounded_by_parts():
    assert not can_round_by_parts(UINT4, 64, 64, "round")  # one group spans all inputs
    assert not can_round_by_parts(INT8, 0, 64, "round")
    assert not can_round_by_parts(UINT4, 32, 64, "hqq")
    assert not can_round_by_parts(UINT4, 33, 64, "round")  # groups that begin within a byte


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_no_scale_holds_are_refused(value, tmp_path):
    matrix = np.ones((64, 48), np.float32)
    matrix[50, 3] = value
    with pytest.raises(UsageError, match="`w` holds NaN or Inf"):
        round_by_parts("w", rows_of(ArrayWeight(matrix)), UINT4, 32, "round", tmp_path)
    with pytest.raises(UsageError, match="`w` holds NaN or Inf"):
        round_table("w", ArrayWeight(matrix), tmp_path)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("num_rows", [100, 20_000], ids=["in memory", "in a file"])
def test_tables_are_rounded_as_they_are_read(num_rows, transposed, tmp_path):
    table = np.random.default_rng(2).standard_normal((num_rows, 64)).astype(np.float32)
    codes, scale, error = round_table("w", laid(table, transposed, tmp_path), tmp_path)
    want, wanted_scale = rounded_rows(table)
    assert (codes.numpy() == want).all()
    assert (scale == wanted_scale).all()
    lost = np.linalg.norm((want * wanted_scale[:, None] - table).astype(np.float64))
    assert error == pytest.approx(lost / np.linalg.norm(table), rel=1e-5)
    assert isinstance(codes, ArrayWeight) == (num_rows == 100)
    assert codes.made_from == ("w",)
