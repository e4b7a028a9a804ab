"""Models that call kernels become ONNX files: what is written is the reference of each."""

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn

import regraft
from regraft import kernels
from tests.backends.triton.harness import interpreted

# numpy's, of lanes that are masked
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


X, Q, K = drawn(6, 8), drawn(2, 4, 6, 8), drawn(2, 2, 6, 8)
CODES = torch.arange(48, dtype=torch.uint8).reshape(8, 6)
CHOSEN = torch.tensor([[0, 1], [2, 0], [1, 2], [1, 0], [0, 2], [2, 1]])
UP, DOWN = drawn(3, 7, 8), drawn(3, 8, 7)
CALLS = {
    "layer_norm": (kernels.layer_norm, (X, drawn(8), drawn(8))),
    "rms_norm": (kernels.rms_norm, (X, drawn(8))),
    "add_layer_norm": (kernels.add_layer_norm, (X, drawn(6, 8), drawn(8), drawn(8))),
    "add_rms_norm": (kernels.add_rms_norm, (X, drawn(6, 8), drawn(8))),
    "softmax": (kernels.softmax, (X,)),
    "softmax of two passes": (lambda x: kernels.softmax(x, True), (X,)),
    "swiglu": (kernels.swiglu, (X, drawn(6, 8))),
    "geglu": (kernels.geglu, (X, drawn(6, 8))),
    "rope": (kernels.rope, (Q, K, drawn(6, 4).cos(), drawn(6, 4).sin())),
    "linear": (lambda x, w, b: kernels.linear(x, w, b, "gelu"), (X, drawn(5, 8), drawn(5))),
    "attention": (
        lambda q, k, v: kernels.attention(q, k, v, window=(-1, 0), softcap=3.0),
        (Q, K, drawn(2, 2, 6, 8)),
    ),
    "attention, clipped": (
        lambda q, k, m: kernels.attention(q, k, k, m, clip=(-0.03, 1.0)), (Q, K, drawn(6, 6)),
    ),
    "attention_decode": (kernels.attention_decode, (Q[:, :, 0], K, drawn(2, 2, 6, 8))),
    "entmax_attention": (kernels.entmax_attention, (Q, K, drawn(2, 2, 6, 8))),
    "linear_attention": (
        lambda q, k, g: kernels.linear_attention(q, k, k, -g.abs())[0], (Q, K, drawn(2, 2, 6)),
    ),
    "gated_delta_attention": (
        lambda q, k, g: kernels.gated_delta_attention(q, k, k, -g.abs(), g[0, 0].sigmoid())[0],
        (Q, K / 4, drawn(2, 2, 6)),
    ),
    "gated_delta_attention, channels": (
        lambda q, k: kernels.gated_delta_attention(q, k, k, -k.abs())[0], (Q, K),
    ),
    "linear_cross_entropy": (
        lambda x, w: kernels.linear_cross_entropy(x, w, CHOSEN[:, 0]), (X, drawn(5, 8)),
    ),
    "cross_entropy": (
        lambda x: kernels.cross_entropy(x, CHOSEN[:, 0], label_smoothing=0.1, z_loss=0.1),
        (X,),
    ),
    "newton_inverse": (lambda x: kernels.newton_inverse(x, x / 9, steps=3), (drawn(2, 4, 4),)),
    "grouped_linear": (
        lambda x, w: kernels.grouped_linear(x, w, torch.tensor([1, 3, 2])), (X, UP),
    ),
    "experts": (
        lambda x, up, down: kernels.experts(x, CHOSEN, torch.full((6, 2), 0.5), up, down, "silu"),
        (X, UP, DOWN),
    ),
    "low_bit_experts": (
        lambda x, up, down: kernels.low_bit_experts(
            x, CHOSEN, torch.full((6, 2), 0.5),
            kernels.CodedMatrices(up, torch.ones(3, 1, 6), zero=3),
            kernels.CodedMatrices(down, torch.ones(3, 1, 8), zero=3), "silu",
        ),
        (X, torch.stack([CODES[:4]] * 3), torch.stack([CODES.reshape(6, 8)[:3]] * 3)),
    ),
    "low_bit_linear": (
        lambda x, codes: kernels.low_bit_linear(x, codes, torch.ones(1, 6), zero=3), (X, CODES[:4]),
    ),
    "low_bit_integer_linear": (
        lambda x, codes: kernels.low_bit_integer_linear(x, torch.ones(6), codes, torch.ones(1, 6)),
        (CODES.reshape(6, 8), CODES.view(torch.int8)),
    ),
}  # fmt: skip


class Calling(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def agrees(path, inputs, expected):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        # f32: sums of at most 8 products, and exponentials of what they are
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


# the bisection of entmax is a long graph
SLOW = ("entmax_attention",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CALLS],
)
def test_a_captured_call_is_its_reference_in_onnx(name, tmp_path):
    function, inputs = CALLS[name]
    net = Calling(function).eval()
    with interpreted():
        expected = net(*inputs)
        regraft.convert(net, tmp_path / "model.onnx", args=inputs, check="off")
    agrees(tmp_path / "model.onnx", inputs, expected)


# PyTorch's own, when it exports
@pytest.mark.filterwarnings("ignore")
def test_the_exporter_of_pytorch_writes_references(tmp_path):
    pytest.importorskip("onnxscript", reason="`torch.onnx.export` needs onnxscript")
    inputs = (X, drawn(8), drawn(5, 8), drawn(5))

    def chain(x, gain, w, b):
        return kernels.softmax(kernels.linear(kernels.rms_norm(x, gain), w, b, "silu"))

    net = Calling(chain).eval()
    torch.onnx.export(net, inputs, tmp_path / "model.onnx", dynamo=True, verbose=False)
    with interpreted():
        expected = net(*inputs)
    agrees(tmp_path / "model.onnx", inputs, expected)
