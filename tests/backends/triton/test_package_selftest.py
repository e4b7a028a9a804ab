"""What a package's self-test allows: roundings, and products of bf16 in the interpreter.

And a decoder whose layers and whose queries and keys share their tables of angles.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch.nn import functional as F

import regraft
from benchmarks.fixtures import vision_ops
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import TOKENS, imported

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


class Unit(nn.Module):
    """Gives rows of length 1, whose mean square has no gradient: what is left is rounding."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x):
        return F.normalize(x + self.second(torch.relu(self.first(x))), dim=-1)


def test_gradients_that_are_rounding_alone_pass(tmp_path):
    torch.manual_seed(0)
    with interpreted():
        regraft.convert(Unit().eval(), tmp_path / "unit", args=(torch.randn(3, 24),),
                        target="triton", check="off")  # fmt: skip
        assert imported(tmp_path / "unit", "selftest").main(["--device", "cpu"]) == 0
    example = torch.load(tmp_path / "unit" / "selftest.pt")
    norms = [norm for norm, _ in example["gradients"].values()]
    assert max(norms) < 1e-6


def test_a_model_in_bf16_passes_and_a_changed_weight_fails(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 24))
    x = torch.randn(3, 24).bfloat16()
    with interpreted():
        regraft.convert(net.bfloat16().eval(), tmp_path / "halves", args=(x,), target="triton",
                        check="off")  # fmt: skip
        # products in kernels, whose bits the interpreter would multiply
        assert "tl.dot(" in (tmp_path / "halves" / "kernels.py").read_text()
        tested = imported(tmp_path / "halves", "selftest")
        assert tested.main(["--device", "cpu"]) == 0
        weights = tmp_path / "halves" / "weights.safetensors"
        text = bytearray(weights.read_bytes())
        text[-60:] = bytes(60)  # biases, whose bytes are the last
        weights.write_bytes(text)
        assert tested.main(["--device", "cpu"]) == 1


def test_queries_and_keys_of_all_layers_are_turned_by_one_table(tmp_path):
    vision_ops.declare()  # before transformers looks for them
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=20, max_position_embeddings=32, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(config).eval()
    with interpreted():
        regraft.convert(net, tmp_path / "llama", args=(TOKENS,), kwargs={"use_cache": False},
                        target="triton", check="off")  # fmt: skip
        assert imported(tmp_path / "llama", "selftest").main(["--device", "cpu"]) == 0
    text = (tmp_path / "llama" / "model.py").read_text()
    assert "= kernels.rope(" in text
    assert "kernels.rotary(" not in text
    assert "for i in range(2):" in text
