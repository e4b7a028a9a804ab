"""Packages of models that passes made: experts, states, low-bit weights, losses."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch.nn import functional as F

import regraft
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import TOKENS, WIDTH, Decoder, imported, trained

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, 40, bias=False) for _ in range(2))
        self.down = nn.Linear(40, WIDTH, bias=False)

    def forward(self, x):
        x = self.norm(x)
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


MIXTURES = {
    "decoder": (lambda: Decoder(1), (TOKENS,), "experts=4,top-k=2"),
    "gated": (Gated, (torch.linspace(-2, 2, 80).reshape(1, 5, WIDTH),), "experts=3,top-k=1"),
    "one token": (Gated, (torch.linspace(-2, 2, 16).reshape(1, 1, WIDTH),), "experts=3,top-k=2"),
}


@pytest.mark.parametrize(
    "name", [pytest.param("decoder", marks=pytest.mark.slow), "gated", "one token"]
)
def test_an_upcycled_mixture_passes_its_self_test_and_trains(tmp_path, name):
    build, args, options = MIXTURES[name]
    torch.manual_seed(0)
    net = build().eval()
    folder = tmp_path / f"mixture_{name.replace(' ', '_')}"
    passes = f"canonicalize,fuse,upcycle-ffn{{{options}}}"
    with interpreted():
        regraft.convert(net, folder, args=args, target="triton", check="off", passes=passes)
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
        found = trained(imported(folder, "model").load(), args, {})
    assert "kernels.experts(" in (folder / "model.py").read_text()
    module = regraft.capture(net, args)
    regraft.apply(module, passes)
    expected = trained(regraft.to_torch(module), args, {})
    assert expected[2] < expected[0]
    # three steps of f32, whose losses are means of a few hundred squares
    assert found == pytest.approx(expected, rel=1e-4)


class Feed(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first, self.second = nn.Linear(width, 96), nn.Linear(96, 33)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


QUANTIZED = {
    "weights=uint4,group=32": "low_bit_linear(x, self.first",
    "weights=int4,group=32": "zero=8",
    "weights=uint2,group=32": "bits=2",
    "weights=uint8,group=32": "bits=8",
    "weights=int8": "low_bit_integer_linear(",
    "activations=static": "x_zero=",
}


def quantized(net, args, folder, options):
    """Returns the text of the package, whose self-test passes."""
    with interpreted():
        regraft.convert(net, folder, args=args, target="triton", check="off",
                        passes=f"canonicalize,fuse,quantize{{{options}}}")  # fmt: skip
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
    return (folder / "model.py").read_text()


@pytest.mark.parametrize("options", QUANTIZED)
def test_a_quantized_model_passes_its_self_test(tmp_path, options):
    torch.manual_seed(0)
    name = "quantized_" + "".join(c if c.isalnum() else "_" for c in options)
    text = quantized(Feed().eval(), (torch.randn(3, 64),), tmp_path / name, options)
    assert text.count("kernels.low_bit_") == 2
    assert QUANTIZED[options] in text
    assert "dequantize(" not in text


def test_codes_lie_packed_in_the_file(tmp_path):
    torch.manual_seed(0)
    net = Feed(1024).eval()
    quantized(net, (torch.randn(1, 1024),), tmp_path / "packed", "weights=uint4,group=128")
    size = (tmp_path / "packed" / "weights.safetensors").stat().st_size
    # half a byte per weight; a scale and a zero point per 128 of them; biases
    weights = 1024 * 96 + 96 * 33
    assert size <= 0.5 * weights + 6 * (weights / 128 + 33) + 4 * 129 + 1500


@pytest.mark.slow
def test_a_quantized_decoder_passes_its_self_test_and_its_biases_train(tmp_path):
    torch.manual_seed(0)
    net = Decoder(1).eval()
    text = quantized(net, (TOKENS,), tmp_path / "quantized_decoder", "weights=int4,group=16")
    assert text.count("kernels.low_bit_linear(") >= 4
