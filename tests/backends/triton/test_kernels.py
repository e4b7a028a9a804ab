"""Kernels in the interpreter: sizes, layouts, dtypes and extreme inputs, with gradients."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F
from triton.runtime import interpreter

from regraft import kernels
from regraft.backends.triton.kernels.rope import reference_rope
from tests.backends.triton.harness import (
    LAYOUTS,
    SIZES_AND_DTYPES,
    check,
    interpreted,
    laid_out,
)

LONG = 17001
"""A row that no configuration holds in registers."""


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms(x, weight, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def layer(x, weight, bias=None, eps=1e-5):
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def added(norm):
    def run(x, residual, *rest):
        return norm(x + residual, *rest), x + residual

    return run


NORMS = {
    "rms_norm": (kernels.rms_norm, rms, 1, 1),
    "layer_norm": (kernels.layer_norm, layer, 1, 2),
    "add_rms_norm": (kernels.add_rms_norm, added(rms), 2, 1),
    "add_layer_norm": (kernels.add_layer_norm, added(layer), 2, 2),
}


def norm_inputs(name, rows, size, dtype, layout="contiguous", scale=1.0):
    _, _, tensors, weights = NORMS[name]
    inputs = [
        laid_out(normal(*rows, size, seed=i).mul(scale).to(dtype), layout) for i in range(tensors)
    ]
    return inputs + [
        laid_out(normal(size, dtype=dtype, seed=9 + i), "contiguous") for i in range(weights)
    ]


@pytest.mark.parametrize(("size", "dtype"), SIZES_AND_DTYPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norms_agree_with_the_oracle(name, size, dtype):
    check(*NORMS[name][:2], norm_inputs(name, (3, 7), size, dtype))


@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
def test_norms_of_long_rows_agree_with_the_oracle(name):
    check(*NORMS[name][:2], norm_inputs(name, (3,), LONG, torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["rms_norm", "add_layer_norm"])
def test_norms_read_any_strides(name, layout):
    check(*NORMS[name][:2], norm_inputs(name, (5,), 65, torch.float32, layout))


@pytest.mark.parametrize("scale", [30.0, 1e-3, 1e4])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_norms_take_extreme_inputs(name, scale):
    check(*NORMS[name][:2], norm_inputs(name, (4,), 127, torch.float16, scale=scale))


def test_norm_of_many_rows_shares_them_among_programs():
    check(kernels.layer_norm, layer, norm_inputs("layer_norm", (37,), 300, torch.float32))


def test_norm_of_no_rows_is_empty():
    weight = torch.ones(8, requires_grad=True)
    y = kernels.rms_norm(torch.ones(0, 8), weight)
    y.sum().backward()
    assert y.shape == (0, 8)
    assert torch.equal(weight.grad, torch.zeros(8))


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
@pytest.mark.parametrize(("size", "dtype"), SIZES_AND_DTYPES, ids=str)
def test_softmax_agrees_with_the_oracle(size, dtype, two_pass):
    x = laid_out(normal(3, 5, size, dtype=dtype), "contiguous")
    check(lambda x: kernels.softmax(x, two_pass), lambda x: torch.softmax(x, -1), [x])


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_reads_any_strides(layout, two_pass):
    x = laid_out(normal(6, 65), layout)
    check(lambda x: kernels.softmax(x, two_pass), lambda x: torch.softmax(x, -1), [x])


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
@pytest.mark.parametrize("scale", [30.0, 1e-3, 2000.0])
def test_softmax_takes_extreme_inputs(scale, two_pass):
    x = normal(4, 127) * scale
    check(lambda x: kernels.softmax(x, two_pass), lambda x: torch.softmax(x, -1), [x])


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
def test_softmax_of_long_rows_reads_them_twice(monkeypatch, two_pass):
    seen = []
    load = interpreter.InterpreterBuilder.create_masked_load

    def counted(self, pointers, mask, *rest):
        seen.append(int(mask.data.sum()))
        return load(self, pointers, mask, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counted)
    x = 2000 * normal(1, LONG)
    with interpreted():
        y = kernels.softmax(x, two_pass)
    assert sum(seen) == 2 * LONG  # three times where the maximum has a pass of its own
    # e^2000 is no f32, the sum of two numbers m * 2^n is
    exact = torch.softmax(x.double(), -1)
    assert (y - exact).abs().max() <= 2**-23


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
def test_softmax_of_long_rows_whose_first_blocks_are_masked(two_pass):
    x = normal(2, LONG)
    x[0, :9000] = -torch.inf
    x[1, 3:] = -torch.inf
    check(lambda x: kernels.softmax(x, two_pass), lambda x: torch.softmax(x, -1), [x])


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_softmax_of_rows_without_a_value_is_nan_as_in_torch(value, two_pass):
    x = normal(2, 63)
    x[0] = value
    check(lambda x: kernels.softmax(x, two_pass), lambda x: torch.softmax(x, -1), [x])


@pytest.mark.parametrize("two_pass", [False, True], ids=["max", "two-pass"])
def test_softmax_rows_sum_to_one_and_a_shift_changes_nothing(two_pass):
    x = normal(4, 127)
    with interpreted():
        y, shifted = kernels.softmax(x, two_pass), kernels.softmax(x + 64, two_pass)
    # 127 terms below 1, each rounded
    torch.testing.assert_close(y.sum(-1), torch.ones(4), rtol=127 * 2**-24, atol=0)
    # the shift rounds x to multiples of 2^-17, which is the relative error of e^x
    torch.testing.assert_close(shifted, y, rtol=2**-16, atol=0)


GATED = {
    "swiglu": (kernels.swiglu, lambda g, u: F.silu(g) * u),
    "geglu": (kernels.geglu, lambda g, u: F.gelu(g) * u),
    "geglu-tanh": (
        lambda g, u: kernels.geglu(g, u, "tanh"),
        lambda g, u: F.gelu(g, approximate="tanh") * u,
    ),
}


@pytest.mark.parametrize(("size", "dtype"), SIZES_AND_DTYPES, ids=str)
@pytest.mark.parametrize("name", GATED)
def test_gated_activations_agree_with_the_oracle(name, size, dtype):
    inputs = [laid_out(normal(3, size, dtype=dtype, seed=i), "contiguous") for i in range(2)]
    check(*GATED[name], inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GATED)
def test_gated_activations_read_any_strides(name, layout):
    check(*GATED[name], [laid_out(normal(4, 300, seed=i), layout) for i in range(2)])


@pytest.mark.parametrize("scale", [30.0, 1e-3, 200.0])
@pytest.mark.parametrize("name", GATED)
def test_gated_activations_take_extreme_inputs(name, scale):
    check(*GATED[name], [normal(4, 127, seed=i) * scale for i in range(2)])


def turned(interleaved):
    def run(q, k):
        angles = normal(q.shape[-2], q.shape[-1] // 2, seed=5)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        complex_angle = torch.complex(cos.double(), sin.double())

        def rotate(x):
            x64 = x.double()
            pairs = x64.unflatten(-1, (-1, 2)) if interleaved else x64.unflatten(-1, (2, -1)).mT
            product = torch.complex(pairs[..., 0], pairs[..., 1]) * complex_angle
            both = torch.stack((product.real, product.imag), -1 if interleaved else -2)
            return both.flatten(-2).to(x.dtype)

        return rotate(q), rotate(k)

    return run


def kernel_turned(interleaved):
    def run(q, k):
        angles = normal(q.shape[-2], q.shape[-1] // 2, seed=5)
        return kernels.rope(q, k, angles.cos().to(q.dtype), angles.sin().to(q.dtype), interleaved)

    return run


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), (2, 3, 1, 7, 126), (1, 20, 5, 3, 64)])
def test_rope_agrees_with_products_of_complex_numbers(shape, dtype, interleaved):
    B, H, G, S, D = shape
    q, k = (laid_out(normal(B, heads, S, D, dtype=dtype), "contiguous") for heads in (H, G))
    check(kernel_turned(interleaved), turned(interleaved), [q, k])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_reads_any_strides(layout):
    q, k = (laid_out(normal(2, heads, 5, 66), layout) for heads in (4, 2))
    check(kernel_turned(False), turned(False), [q, k])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (2,)], ids=str)
def test_tables_of_rope_are_learned(batch, interleaved):
    def written_out(q, k, cos, sin):
        return reference_rope(q, k, cos, sin, interleaved, False)

    def kernel(q, k, cos, sin):
        return kernels.rope(q, k, cos, sin, interleaved)

    q, k = normal(2, 3, 5, 8), normal(2, 1, 5, 8, seed=1)
    cos, sin = normal(*batch, 5, 4, seed=2), normal(*batch, 5, 4, seed=3)
    check(kernel, written_out, [q, k, cos, sin])


def test_rope_refuses_tables_as_wide_as_the_heads():
    q = normal(1, 1, 2, 8)
    with pytest.raises(ValueError, match="expected half as many"):
        kernels.rope(q, q, normal(2, 8), normal(2, 8))


LINEAR = {
    "none": lambda y: y,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
}


def linear_pair(activation):
    return (
        lambda x, w, b: kernels.linear(x, w, b, activation),
        lambda x, w, b: LINEAR[activation](F.linear(x, w, b)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("activation", LINEAR)
def test_linear_agrees_with_the_oracle(activation, dtype):
    inputs = [
        laid_out(normal(*shape, dtype=dtype, seed=i), "contiguous")
        for i, shape in enumerate([(3, 5, 63), (65, 63), (65,)])
    ]
    check(*linear_pair(activation), inputs)


@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (127, 65, 130), (70, 1000, 33), (2, 3, 1000)])
def test_linear_takes_any_size(M, N, K):
    inputs = [normal(M, K), normal(N, K, seed=1), None]
    check(*linear_pair("none"), inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linear_reads_any_strides(layout):
    x, weight = laid_out(normal(20, 65), layout), laid_out(normal(33, 65, seed=1), layout)
    check(*linear_pair("silu"), [x, weight, normal(33, seed=2)])


def test_kernels_refuse_doubles():
    with pytest.raises(TypeError, match="takes f32, f16 and bf16"):
        kernels.softmax(normal(2, 3).double())
