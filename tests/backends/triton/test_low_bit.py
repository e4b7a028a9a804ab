"""Products with weights of few bits in the interpreter, against what the codes stand for."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from regraft import kernels
from regraft.passes.quantization.formats import FORMATS
from tests.backends.triton.harness import SIZES, assert_close, check, interpreted
from tests.backends.triton.test_attention import normal


def stored(size, outputs, bits, group, is_signed=False, seed=0):
    """Returns codes as kernels take them, their scales and zero points, and the codes whole."""
    draw = np.random.default_rng(seed)
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if is_signed else (0, 1 << bits)
    whole = torch.from_numpy(draw.integers(low, high, (size, outputs)))
    groups = -(-size // group)
    scale = torch.from_numpy(draw.uniform(0.1, 1, (groups, outputs))).float()
    zeros = torch.from_numpy(draw.integers(0, 1 << bits, (groups, outputs))).to(torch.uint8)
    codes = whole.to(torch.int8 if is_signed else torch.uint8)
    return codes if bits == 8 else kernels.pack_codes(codes, bits), scale, zeros, whole


def weights_of(whole, scale, zeros, group, zero=0):
    """Returns f64 of what codes stand for."""
    size = len(whole)
    point = zero if zeros is None else zeros.double().repeat_interleave(group, 0)[:size]
    return (whole.double() - point) * scale.double().repeat_interleave(group, 0)[:size]


def compare(x, bits, group, outputs=19, has_zeros=True, is_signed=False):
    codes, scale, zeros, whole = stored(x.shape[-1], outputs, bits, group, is_signed)
    given = zeros if has_zeros else None
    zero = 0 if has_zeros or is_signed else 1 << (bits - 1)
    w = weights_of(whole, scale, given, group, zero)
    check(
        lambda x: kernels.low_bit_linear(x, codes, scale, given, bits=bits, group=group, zero=zero),
        lambda x: x @ w.to(x.dtype),
        [x],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("has_zeros", [False, True], ids=["one zero point", "zero points"])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (2, 16), (8, 64)])
def test_weights_of_few_bits_agree_with_the_oracle(bits, group, has_zeros, dtype):
    compare(normal(5, 200, dtype=dtype) / 8, bits, group, has_zeros=has_zeros)


@pytest.mark.parametrize("size", SIZES)
def test_odd_numbers_of_inputs(size):
    compare(normal(3, size, dtype=torch.float16) / 8, 4, 32, outputs=65)


@pytest.mark.parametrize("rows", [1, 17, 65])
def test_numbers_of_rows_and_outputs(rows):
    compare(normal(2, rows, 48) / 8, 4, 48, outputs=127)


def tabled(x, name, outputs=19, group=0):
    """Compares a product with codes of a format's table with what they stand for."""
    fmt = FORMATS[name]
    table = torch.tensor(np.nan_to_num(np.asarray(fmt.table, np.float32)))
    bits, group = fmt.bits, group or fmt.block or 32
    codes, scale, _, whole = stored(x.shape[-1], outputs, bits, group)
    w = table.double()[whole] * scale.double().repeat_interleave(group, 0)[: len(whole)]
    w = w / table.abs().max()
    scale = scale / table.abs().max()
    check(
        lambda x: kernels.low_bit_linear(x, codes, scale, bits=bits, group=group, table=table),
        lambda x: x @ w.to(x.dtype),
        [x],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["nf4", "fp4", "nvfp4", "fp8_e4m3"])
def test_codes_stand_for_numbers_of_a_table(name, dtype):
    tabled(normal(5, 200, dtype=dtype) / 8, name)


@pytest.mark.parametrize("size", SIZES)
def test_table_codes_of_odd_numbers_of_inputs(size):
    tabled(normal(3, size, dtype=torch.float16) / 8, "nf4", outputs=65)


@pytest.mark.parametrize("rows", [1, 17, 65])
def test_table_codes_of_numbers_of_rows(rows):
    tabled(normal(2, rows, 48) / 8, "fp4", outputs=127, group=48)


def test_a_table_of_another_size_is_refused():
    codes, scale, *_ = stored(64, 8, 4, 32)
    with pytest.raises(ValueError, match=r"a table \[8\] for codes of 4 bits"):
        kernels.low_bit_linear(torch.ones(2, 64), codes, scale, group=32, table=torch.ones(8))


def test_signed_bytes_have_no_zero_point():
    compare(normal(4, 40) / 8, 8, 40, has_zeros=False, is_signed=True)


def test_no_rows_give_none():
    codes, scale, *_ = stored(32, 8, 4, 32)
    with interpreted():
        assert kernels.low_bit_linear(torch.ones(0, 32), codes, scale, group=32).shape == (0, 8)


def test_a_row_gives_the_same_bits_in_any_batch():
    codes, scale, zeros, _ = stored(96, 40, 4, 32)
    x = normal(70, 96, dtype=torch.float16)
    with interpreted():
        one, many = (
            kernels.low_bit_linear(part, codes, scale, zeros, group=32, invariant=True)
            for part in (x[:1], x)
        )
        inputs = torch.randint(0, 256, (70, 96), dtype=torch.uint8)
        few, all_ = (
            kernels.low_bit_integer_linear(part, 0.1, codes, scale, zeros, bits=4, group=32)
            for part in (inputs[3:5], inputs)
        )
    assert torch.equal(one, many[:1])
    assert torch.equal(few, all_[3:5])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 32), (4, 32), (4, 64), (2, 32), (4, 0)])
@pytest.mark.parametrize("size", [1, 63, 300])
def test_integer_products_are_exact_until_they_are_scaled(bits, group, dtype, size):
    x = torch.randint(-128, 128, (5, size)).add(128 if dtype is torch.uint8 else 0).to(dtype)
    x_zero, x_scale = 117 if dtype is torch.uint8 else -3, torch.rand(5) + 0.1
    codes, scale, zeros, whole = stored(size, 19, bits, group or size, is_signed=bits == 8)
    given = None if bits == 8 else zeros
    with interpreted():
        found = kernels.low_bit_integer_linear(
            x, x_scale, codes, scale, given, x_zero=x_zero, bits=bits, group=group
        )
    w = weights_of(whole, scale, given, group or size)
    left = (x.double() - x_zero) * x_scale.double()[:, None]
    usual = (x.float() - x_zero) * x_scale[:, None]
    assert_close(found, left @ w, usual @ w.float(), "integers")


def test_packing_keeps_codes():
    for bits, size in ((2, 7), (4, 9), (8, 3)):
        codes = torch.randint(0, 1 << bits, (size, 5), dtype=torch.uint8)
        packed = kernels.pack_codes(codes, bits)
        assert packed.shape == (-(-size * bits // 8), 5)
        assert torch.equal(kernels.unpack_codes(packed, bits, size), codes)


def test_codes_that_do_not_fit_are_refused():
    codes, scale, *_ = stored(64, 8, 4, 32)
    x, integers = torch.ones(2, 64), torch.ones(2, 64, dtype=torch.int8)
    with pytest.raises(ValueError, match="multiple of 16"):
        kernels.low_bit_linear(x, codes, scale, group=24)
    with pytest.raises(ValueError, match="for 64 inputs in groups of 16"):
        kernels.low_bit_linear(x, codes, scale, group=16)
    with pytest.raises(ValueError, match="codes of 3 bits"):
        kernels.low_bit_linear(x, codes, scale, bits=3)
    with pytest.raises(TypeError, match="expected i8 or u8"):
        kernels.low_bit_integer_linear(x, 1.0, codes, scale, bits=4, group=32)
    narrow = scale.repeat_interleave(2, 0)
    with pytest.raises(ValueError, match="multiples of 32"):
        kernels.low_bit_integer_linear(integers, 1.0, codes, narrow, bits=4, group=16)
