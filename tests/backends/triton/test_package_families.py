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
