"""Formats of quantized numbers that are no integers, and folds of their exponents."""

import ml_dtypes
import numpy as np
import pytest

from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.builder import Builder
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import linalg
from regraft.ir.text import parse_module, print_module
from regraft.passes.equivalence.fold_exponent_bias import channel_shifts
from regraft.passes.quantization.encoding import grid_of, round_to
from regraft.passes.quantization.formats import (
    FORMATS,
    FP4,
    FP8_E4M3,
    FP8_E5M2,
    INT4,
    MXFP4,
    NF4,
    NVFP4,
    nearest,
    values_of,
)
from regraft.passes.quantization.rewrite import dequantized
from regraft.passes.quantization.small_floats import (
    end_of,
    rounded_float,
    searched_floats,
    small_float,
)

TABLES = [fmt for fmt in FORMATS.values() if not fmt.is_integer]


def error_of(matrix, fmt, group):
    return float(np.square(round_to(matrix, grid_of(matrix, fmt, group)).decode() - matrix).mean())


@pytest.mark.parametrize("fmt", TABLES, ids=lambda fmt: fmt.name)
def test_codes_of_values_are_their_own(fmt):
    table = np.asarray(fmt.table)
    codes = np.flatnonzero(np.isfinite(table))
    np.testing.assert_array_equal(
        values_of(fmt, nearest(fmt, table[codes].astype(np.float32))), table[codes]
    )


@pytest.mark.parametrize(
    ("fmt", "kind"), [(FP8_E4M3, ml_dtypes.float8_e4m3fn), (FP8_E5M2, ml_dtypes.float8_e5m2)]
)
def test_eight_bit_floats_round_as_the_type_does(fmt, kind):
    rng = np.random.default_rng(0)
    numbers = (rng.normal(size=4000) * np.exp2(rng.integers(-8, 6, 4000))).astype(np.float32)
    want = numbers.astype(kind).astype(np.float32)
    got = values_of(fmt, nearest(fmt, numbers))
    # ties go to the lower value here, to the even one there: no drawn number is a tie
    np.testing.assert_array_equal(got, want)


def test_e2m1_has_fifteen_values_and_nf4_sixteen():
    assert len({abs(v) * np.sign(v) for v in FP4.table}) == 15
    assert len(set(NF4.table)) == 16
    assert sorted(small_float(2, 1).table) == sorted(2 * v for v in FP4.table)


def test_nf4_beats_int4_on_normal_weights():
    matrix = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
    assert error_of(matrix, NF4, 64) < error_of(matrix, INT4, 64)


def test_fp4_beats_int4_where_tails_are_long_and_ties_on_a_normal():
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(4096, 1)).astype(np.float32)
    tailed = rng.standard_t(3, size=(4096, 1)).astype(np.float32)
    whole = 32  # in blocks, as both are used
    assert error_of(tailed, FP4, whole) < error_of(tailed, INT4, whole)
    assert error_of(normal, FP4, whole) == pytest.approx(error_of(normal, INT4, whole), rel=0.5)


def test_scales_of_mx_are_powers_of_two_and_of_nv_small_floats():
    matrix = np.random.default_rng(3).normal(size=(64, 8)).astype(np.float32)
    mx = grid_of(matrix, MXFP4, 32).scale
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(mx))), mx)
    nv = grid_of(matrix, NVFP4, 16).scale
    small = nv / (nv.max() / 448)
    np.testing.assert_allclose(small, small.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    # scales closer to what is wanted
    assert error_of(matrix, NVFP4, 16) < error_of(matrix, MXFP4, 32)


def product_with(fmt, matrix):
    module = parse_module(
        f'module "net"\nsymbol B\ngraph(%x : f32[B, {len(matrix)}]) {{\n  return %x\n}}\n'
    )
    b = Builder(module.graph)
    encoded = round_to(matrix, grid_of(matrix, fmt, fmt.block or 32))
    weight: Value = dequantized(b, "w", encoded, None, per_channel=False)
    y = b.op(linalg.matmul, module.graph.inputs[0], weight)
    module.graph.set_outputs([("y", y)])
    return module, encoded


@pytest.mark.parametrize("fmt", TABLES, ids=lambda fmt: fmt.name)
def test_weights_of_tables_mean_the_same_here_in_text_and_in_onnx_runtime(fmt):
    matrix = np.random.default_rng(4).normal(size=(128, 24)).astype(np.float32)
    module, encoded = product_with(fmt, matrix)
    x = {"x": np.random.default_rng(5).normal(size=(3, 128)).astype(np.float32)}
    want = x["x"].astype(np.float64) @ encoded.decode()
    scale = np.abs(want).max()
    (got,) = evaluate(module, x).values()
    (ran,) = OrtRunner(to_proto(module))(x).values()
    again: Module = parse_module(print_module(module), weights=module.weights)
    (read,) = evaluate(again, x).values()
    for each in (got, ran, read):
        # sums of 128 products in f32
        np.testing.assert_allclose(each / scale, want / scale, atol=128 * np.finfo(np.float32).eps)


def test_a_float_ends_where_its_bias_says():
    fmt = small_float(2, 1)
    # (2 - 2^-M) 2^(2^E - 1 - b)
    assert end_of(fmt, 0.5) == pytest.approx((2 - 0.5) * 2 ** (3 - 0.5))


def test_channel_shifts_leave_the_largest_and_stay_within_the_exponent():
    top = np.array([16.0, 8.0, 4.0, 1.0, 1e-6], np.float32)
    np.testing.assert_array_equal(channel_shifts(top, 2, 1), [0, 1, 2, 3, 3])


def test_shifted_channels_lose_less_in_four_bits():
    rng = np.random.default_rng(6)
    rows = (rng.normal(size=(512, 64)) * np.exp2(-rng.integers(0, 4, 64))).astype(np.float32)
    fmt = small_float(2, 1)
    shifts = np.exp2(channel_shifts(np.abs(rows).max(0), 2, 1))
    plain = rounded_float(rows, fmt, np.abs(rows).max() / fmt.top)
    moved = rounded_float(rows * shifts, fmt, np.abs(rows * shifts).max() / fmt.top) / shifts
    assert np.square(moved - rows).mean() < 0.5 * np.square(plain - rows).mean()


def test_the_search_of_floats_beats_full_ranges():
    rng = np.random.default_rng(7)
    matrix = rng.standard_t(4, size=(48, 16)).astype(np.float32)
    rows = rng.standard_t(4, size=(128, 48)).astype(np.float32)
    found = searched_floats(matrix, rows)
    fmt = small_float(2, 1)
    plain = rounded_float(rows, fmt, np.abs(rows).max() / fmt.top) @ rounded_float(
        matrix, fmt, np.abs(matrix).max(0) / fmt.top
    )
    assert found.error < float(np.square(plain - rows @ matrix).mean())
