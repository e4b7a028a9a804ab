"""The harness finds what it is there to find."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
triton = pytest.importorskip("triton", reason="needs the extra `triton`")

import triton.language as tl

from tests.backends.triton import harness


@triton.jit
def double_kernel(x_ptr, y_ptr, N, count: tl.constexpr):
    i = tl.arange(0, 16)
    tl.store(y_ptr + i, 2 * tl.load(x_ptr + i, mask=i < N), mask=i < count)


@triton.jit
def dot_kernel(x_ptr, y_ptr):
    i = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, tl.dot(x, x))


class Double(torch.autograd.Function):
    """Twice x, written by a kernel as far as `count` and scaled by `factor`."""

    @staticmethod
    def forward(ctx, x, count, factor, reads):
        y = torch.empty_like(x)
        double_kernel[(1,)](x, y, reads, count=count)
        return y * factor

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy, None, None, None


def doubled(count=10, factor=1.0, reads=10):
    return lambda x: Double.apply(x, count, factor, reads)


def values():
    return harness.laid_out(torch.linspace(-1, 1, 10), "contiguous")


def test_kernels_are_interpreted():
    assert isinstance(double_kernel, harness.interpreter.InterpretedFunction), (
        "Triton was imported before tests/backends/triton/conftest.py"
    )


def test_a_right_kernel_passes():
    harness.check(doubled(), lambda x: 2 * x, [values()])


def test_an_element_that_is_not_written_is_found():
    with pytest.raises(AssertionError, match="NaN or infinity elsewhere"):
        harness.check(doubled(count=9), lambda x: 2 * x, [values()])


def test_an_element_that_is_not_read_is_found():
    with pytest.raises(AssertionError, match="above"):
        harness.check(doubled(reads=9), lambda x: 2 * x, [values()])


def test_a_few_roundings_are_found():
    # doubling is exact in PyTorch, so that one rounding of the result is all there is
    factor = 1 + 3 * torch.finfo(torch.float32).eps
    with pytest.raises(AssertionError, match="above"):
        harness.check(doubled(factor=factor), lambda x: 2 * x, [values()])


def test_a_lucky_run_of_pytorch_is_not_held_against_a_kernel():
    exact = torch.tensor([1 / 3])
    off = exact * (1 + 3 * torch.finfo(torch.float32).eps)
    lucky = harness.closeness(off, exact, exact)
    assert lucky.error > lucky.bound
    usual = harness.closeness(off, exact, exact, 1.0, lambda: [torch.full((1,), 1e-7)])
    assert usual.error <= usual.bound


def test_a_wrong_gradient_is_found():
    with pytest.raises(AssertionError, match=r"1 \(gradient: True\)"):
        harness.check(doubled(), lambda x: 2 * x + 1e-3 * (x - x.detach()), [values()])


@pytest.mark.parametrize("layout", harness.LAYOUTS)
def test_memory_around_an_operand_is_poisoned(layout):
    x = harness.laid_out(torch.zeros(3, 4), layout)
    memory = torch.empty(0).set_(x.untyped_storage())
    poisoned = memory.numel() - x.numel()
    assert torch.isnan(memory).sum() == poisoned
    assert poisoned > 0 or layout == "transposed"


def test_products_of_bf16_are_refused():
    x = torch.eye(16, dtype=torch.bfloat16)
    with (
        harness.interpreted(),
        pytest.raises(triton.runtime.errors.InterpreterError, match="silently wrong"),
    ):
        dot_kernel[(1,)](x, torch.empty(16, 16))


def test_products_of_f16_are_not_refused():
    x, y = torch.eye(16, dtype=torch.float16), torch.empty(16, 16)
    with harness.interpreted():
        dot_kernel[(1,)](x, y)
    assert torch.equal(y, torch.eye(16))
