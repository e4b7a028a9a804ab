"""Packages of models that passes made: experts, states, low-bit weights, losses."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch.nn import functional as F

import regraft
from benchmarks.fixtures import vision_ops
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import (
    TOKENS,
    WIDTH,
    Decoder,
    imported,
    trained,
    unbroken,
)

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


class Gated(nn.Module):
    def __init__(self, hidden=40):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, WIDTH, bias=False)

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


@pytest.mark.parametrize(
    ("weights", "form"),
    [("int4", "bits=4, group=16, zero=8"), ("int8", "bits=8, group=16"), ("nvfp4", "table=self.")],
)
def test_a_mixture_of_codes_is_unpacked_in_the_kernels(tmp_path, weights, form):
    torch.manual_seed(0)
    options = f"{{weights={weights},group=16,activations=none}}"
    passes = f"canonicalize,fuse,upcycle-ffn{{experts=3,top-k=2}},quantize{options}"
    net, args = Gated(48).eval(), MIXTURES["gated"][1]
    folder = tmp_path / f"coded_{weights}"
    with interpreted():
        regraft.convert(net, folder, args=args, target="triton", check="off", passes=passes)
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
    text = (folder / "model.py").read_text()
    assert "kernels.low_bit_experts(" in text
    mixture = text.partition("low_bit_experts(")[2]
    assert mixture.count(form) == 3
    assert "dequantize(" not in text
    assert "look_up(" not in text
    kernels = (folder / "kernels.py").read_text()
    assert "def grouped_low_bit_hidden_kernel(" in kernels
    assert "def grouped_kernel(" not in kernels


class Feed(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first, self.second = nn.Linear(width, 96), nn.Linear(96, 33)
        self.gain = nn.Parameter(torch.linspace(0.5, 2, width))

    def forward(self, x):
        # its gradient goes through both roundings
        return self.second(torch.relu(self.first(torch.tanh(x * self.gain))))


QUANTIZED = {
    "weights=uint4,group=32": "kernels.low_bit_linear(tanh, self.first",
    "weights=int4,group=32": "zero=8",
    "weights=uint2,group=32": "bits=2",
    "weights=uint8,group=32": "bits=8",
    "weights=nf4": "table=self.",
    "weights=fp4,group=32": "table=self.",
    "weights=mxfp4": "table=self.",
    "weights=nvfp4": "table=self.",
    "weights=fp8_e4m3": "bits=8",
    "weights=int8": "rounded_low_bit_linear(",
    "activations=static": "x_zero=",
}


def quantized(net, args, folder, options):
    """Returns the text of the package, whose self-test passes."""
    with interpreted():
        regraft.convert(net, folder, args=args, target="triton", check="off",
                        passes=f"canonicalize,fuse,quantize{{{options}}}")  # fmt: skip
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
    return unbroken((folder / "model.py").read_text())


@pytest.mark.parametrize("options", QUANTIZED)
def test_a_quantized_model_passes_its_self_test(tmp_path, options):
    torch.manual_seed(0)
    name = "quantized_" + "".join(c if c.isalnum() else "_" for c in options)
    text = quantized(Feed().eval(), (torch.randn(3, 64),), tmp_path / name, options)
    assert text.count("low_bit_linear(") == 2
    assert QUANTIZED[options] in text
    assert "dequantize(" not in text


def test_codes_lie_packed_in_the_file(tmp_path):
    torch.manual_seed(0)
    net = Feed(1024).eval()
    quantized(net, (torch.randn(1, 1024),), tmp_path / "packed", "weights=uint4,group=128")
    size = (tmp_path / "packed" / "weights.safetensors").stat().st_size
    # half a byte per weight; a scale and a zero point per 128 of them; biases and the norm's gain
    weights = 1024 * 96 + 96 * 33
    assert size <= 0.5 * weights + 6 * (weights / 128 + 33) + 4 * (129 + 1024) + 1500


@pytest.mark.slow
def test_a_quantized_decoder_passes_its_self_test_and_its_biases_train(tmp_path):
    torch.manual_seed(0)
    net = Decoder(1).eval()
    text = quantized(net, (TOKENS,), tmp_path / "quantized_decoder", "weights=int4,group=16")
    assert text.count("kernels.low_bit_linear(") >= 4


def cached_llama(hidden=0):
    """Returns a decoder with a cache of five tokens, and the call of its next step.

    Args:
        hidden: Tokens of a second sequence that are padding; 0: there is one sequence.
    """
    vision_ops.declare()  # before transformers looks for them
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=11, max_position_embeddings=32, eos_token_id=1,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config).eval()
    cache = transformers.DynamicCache(config=config)
    tokens, step = TOKENS, {"input_ids": torch.tensor([[3]])}
    if hidden:
        tokens = TOKENS.repeat(2, 1)
        shown = torch.ones((2, 6), dtype=torch.int64)
        shown[1, :hidden] = 0
        step = {"input_ids": torch.tensor([[3], [7]]), "attention_mask": shown}
    known = {"attention_mask": step["attention_mask"][:, :-1]} if hidden else {}
    with torch.no_grad():
        net(tokens, past_key_values=cache, use_cache=True, **known)
    return net, {**step, "past_key_values": cache, "use_cache": True}


@pytest.mark.parametrize("hidden", [0, 2], ids=["one sequence", "a padded batch"])
def test_a_decoder_with_states_shares_keys_out(tmp_path, hidden):
    torch.manual_seed(0)
    net, step = cached_llama(hidden)
    with interpreted():
        regraft.convert(net, tmp_path / "step", kwargs=step, target="triton", check="off")
        assert imported(tmp_path / "step", "selftest").main(["--device", "cpu"]) == 0
    assert "kernels.attention_with_cache(" in (tmp_path / "step" / "model.py").read_text()
    assert "def decode_kernel(" in (tmp_path / "step" / "kernels.py").read_text()


class Training(nn.Module):
    def __init__(self, num_layers=0):
        super().__init__()
        self.net = Decoder(num_layers)

    def forward(self, tokens, labels):
        logits = self.net(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def fitted(net, args):
    """Returns the losses of three steps."""
    losses = []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = net(*args)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_loss_of_a_decoder_is_one_kernel_and_trains(tmp_path):
    torch.manual_seed(0)
    net, labels = Training().eval(), torch.tensor([[1, 18, -100, 0, 7]])
    with interpreted():
        regraft.convert(net, tmp_path / "loss", args=(TOKENS, labels), target="triton", check="off")
        assert imported(tmp_path / "loss", "selftest").main(["--device", "cpu"]) == 0
        found = fitted(imported(tmp_path / "loss", "model").load(), (TOKENS, labels))
    text = (tmp_path / "loss" / "model.py").read_text()
    assert "kernels.linear_cross_entropy(" in text
    assert "log_softmax" not in text
    expected = fitted(net, (TOKENS, labels))
    assert expected[2] < expected[0]
    # three steps of f32, whose losses are means of four logarithms
    assert found == pytest.approx(expected, rel=1e-4)
