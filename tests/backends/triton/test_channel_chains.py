"""Chains of images: biases of convolutions, norms per channel, means of planes."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F

from regraft.backends.triton.kernels.generated import layout_of
from tests.backends.triton.harness import check, laid_out
from tests.backends.triton.test_generated_kernels import generated, packaged, values

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def images(height=5, width=7, seed=0):
    return values(2, 32, height, width, seed=seed)


def channels(seed=1):
    return values(32, seed=seed)


def convolved(x, weight, bias, other):
    return F.relu(F.conv2d(x, weight, bias, padding=1) + other)


MEAN, VARIANCE = torch.linspace(-1, 1, 32), torch.linspace(0.5, 2, 32)


def normalized(x, gain, bias):
    """A norm of no convolution, as before one; and what a gate of channels reads."""
    made = F.hardswish(F.batch_norm(x, MEAN.to(x.dtype), VARIANCE.to(x.dtype), gain, bias))
    return made, made.mean((2, 3), keepdim=True)


def gated(x, gate):
    return x * F.hardsigmoid(gate) + x


def biased(x, bias, other):
    return x + bias[:, None, None] + other


def pooled(x, bias):
    return F.gelu(x + bias[:, None, None]).mean((2, 3))


def largest(x, y):
    return (x * y).amax((2, 3), keepdim=True) - y


def instances(x, gain, bias, other):
    return F.silu(F.instance_norm(x, weight=gain, bias=bias, eps=1e-3)) + other


CHAINS = {
    "convolved": (
        convolved,
        lambda: (images(), values(32, 32, 3, 3, scale=0.06), channels(), images(seed=2)),
        "add_add_relu",
    ),
    "normalized": (
        normalized,
        lambda: (images(), channels(3), channels(4)),
        "add_sqrt_div_and_6",
    ),
    "gated": (gated, lambda: (images(), values(2, 32, 1, 1, seed=1)), "hard_sigmoid_mul_add"),
    "pooled": (pooled, lambda: (images(), channels()), "add_gelu_mean"),
    "largest": (largest, lambda: (images(), images(seed=1)), "mul_max_sub"),
    "instances": (
        instances,
        lambda: (images(), channels(1), channels(2), images(seed=3)),
        "mean_sub_mul_and_8",
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_images_is_one_kernel(name, tmp_path):
    function, inputs, kernel = CHAINS[name]
    net, kernels = packaged(function, inputs(), tmp_path / "package")
    assert generated(kernels) == [kernel]
    check(net, function, inputs())


@pytest.mark.parametrize("sizes", [(9, 13), (1, 1), (1, 65)])
@pytest.mark.parametrize("name", ["gated", "pooled"])
def test_planes_too_long_for_registers_and_of_one_element(name, sizes, tmp_path, monkeypatch):
    function, inputs, _ = CHAINS[name]
    given = (images(*sizes), *inputs()[1:])
    net, kernels = packaged(function, given, tmp_path / "package")
    bucket = {"up_to": 1, "rows": 2, "max_block": 32, "warps": 4, "per_processor": 1}
    for entry in ("generated_rows", "generated_gradient_rows"):
        monkeypatch.setitem(kernels.CONFIGS, entry, {"default": {"any": [bucket]}})
    check(net, function, given)


@pytest.mark.parametrize("name", ["convolved", "gated"])
def test_channels_that_are_last_in_memory(name, tmp_path, monkeypatch):
    """On a GPU results lie as operands do; here that is what the layout is said to be."""
    function, inputs, _ = CHAINS[name]
    net, kernels = packaged(function, inputs(), tmp_path / "package")
    monkeypatch.setattr(kernels, "layout_of", lambda x: torch.channels_last)
    given = [each if each.dim() != 4 or each.shape[-1] < 5 else channels_last(each)
             for each in inputs()]  # fmt: skip
    assert net(*given).is_contiguous(memory_format=torch.channels_last)
    check(net, function, tuple(given))


@pytest.mark.parametrize("layout", ["channels last", "every other", "one for all"])
def test_operands_that_lie_unlike_the_result(layout, tmp_path):
    """A convolution gives channels last where what it reads has them; its residual does not."""
    net, _ = packaged(biased, (images(), channels(), images(seed=2)), tmp_path / "package")
    for place in (0, 2):
        given = [images(), channels(), images(seed=2)]
        given[place] = {
            "channels last": channels_last,
            "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
            "one for all": lambda x: x[:1, :1, :1, :1].expand_as(x),
        }[layout](given[place])
        assert not given[place].is_contiguous()
        torch.testing.assert_close(net(*given), biased(*given), rtol=0, atol=1e-6)  # two sums


def channels_last(x):
    return laid_out(x.permute(0, 2, 3, 1), "contiguous").permute(0, 3, 1, 2)


def test_results_lie_as_operands_do():
    x = torch.empty(2, 3, 4, 5, device="meta")
    last = x.to(memory_format=torch.channels_last)
    assert layout_of(x) is layout_of(x[0]) is torch.contiguous_format
    assert layout_of(last) is torch.channels_last
    assert layout_of(last[:, :2]) is torch.contiguous_format
    assert layout_of(torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)) is (
        torch.contiguous_format  # references run there
    )
