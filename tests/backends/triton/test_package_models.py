"""Real and small models of every kind as packages, beside PyTorch's own operators."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn

import regraft
from benchmarks.models import ModelMissingError, find, named, samples
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import TOKENS, Decoder, Vision, imported, trained

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
    pytest.mark.slow,
]

IMAGE = (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8),)
MODELS = {
    "gpt": (lambda: Decoder(2), (TOKENS,), "canonicalize,fuse", "attention"),
    "vit": (Vision, IMAGE, "canonicalize,fuse", "attention"),
    "linearized": (
        lambda: Decoder(2), (TOKENS,), "canonicalize,fuse,linearize-attention{method=elu}",
        "linear_attention",
    ),
    "upcycled": (
        lambda: Decoder(2), (TOKENS,), "canonicalize,fuse,upcycle-ffn{experts=4,top-k=2}",
        "experts",
    ),
    "4 bits": (
        lambda: Decoder(2), (TOKENS,), "canonicalize,fuse,quantize{weights=int4,group=16}",
        "low_bit_linear",
    ),
    "8 bits": (
        lambda: Decoder(2), (TOKENS,), "canonicalize,fuse,quantize", "rounded_low_bit_linear",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_package_gives_and_trains_as_the_torch_backend_does(tmp_path, name):
    build, args, passes, called = MODELS[name]
    torch.manual_seed(0)
    net = build().eval()
    folder = tmp_path / f"model_{name.replace(' ', '_')}"
    with interpreted():
        regraft.convert(net, folder, args=args, target="triton", check="off", passes=passes)
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
        made = imported(folder, "model").load()
        found, losses = made(*args), trained(made, args, {})
    text = (folder / "model.py").read_text()
    assert f"kernels.{called}(" in text
    assert ("kernels.linear_add(" in text) or name not in ("gpt", "vit")
    module = regraft.capture(net, args)
    regraft.apply(module, passes)
    usual = regraft.to_torch(module)
    # f32 through two layers; codes of 8 bits may round to a neighbour
    tolerance = 2e-2 if "8" in name else 1e-4
    torch.testing.assert_close(found, usual(*args), rtol=tolerance, atol=tolerance)
    assert losses == pytest.approx(trained(usual, args, {}), rel=tolerance)


def test_the_real_encoder_passes_its_self_test(tmp_path):
    model = named("minilm-l3")
    try:
        path = find(model)
    except ModelMissingError as error:
        pytest.skip(str(error))
    sample = min(samples(model), key=lambda given: sum(x.size for x in given.values()))
    with interpreted():
        regraft.convert(path, tmp_path / "encoder", target="triton", samples=[sample], check="off")
        assert imported(tmp_path / "encoder", "selftest").main(["--device", "cpu"]) == 0
    text = (tmp_path / "encoder" / "model.py").read_text()
    assert "kernels.attention(" in text
    assert "kernels.add_layer_norm(" in text or "kernels.linear_add(" in text


class Losses(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.register_buffer("weights", torch.tensor([0.25, 2.0]))

    def forward(self, x):
        y = self.first(x)
        near, far = (y.tanh() - x).square().mean(), (y.sigmoid() + x).square().mean()
        return near * self.weights * 0.25 + far * self.weights


def test_means_of_everything_are_scalars_where_they_are_read(tmp_path):
    # not [1, 1, 1], which would give the chain that reads them rows that it does not have
    torch.manual_seed(0)
    net, x = Losses(), torch.randn(2, 3, 4)
    with interpreted():
        regraft.convert(net, tmp_path / "losses", args=(x,), target="triton", check="off")
        assert imported(tmp_path / "losses", "selftest").main(["--device", "cpu"]) == 0
    assert "mul_mul_mul_add(" in (tmp_path / "losses" / "model.py").read_text()
