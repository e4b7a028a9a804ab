"""Kernels as operators of PyTorch: opcheck, export as one node, references, configurations."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch._subclasses.fake_tensor import FakeTensorMode

from regraft.backends.triton.kernels import configs, operators
from regraft.backends.triton.kernels.attending import attention_backward, attention_forward
from regraft.backends.triton.kernels.cross_entropy import cross_entropy_forward, logit_gradient
from regraft.backends.triton.kernels.decoding import decode
from regraft.backends.triton.kernels.delta_attention import (
    gated_delta_forward,
    gated_delta_gradient,
)
from regraft.backends.triton.kernels.gated import gated, gated_backward
from regraft.backends.triton.kernels.gradient_filter import (
    filtered_logit_gradient,
    filtered_product,
)
from regraft.backends.triton.kernels.grouped import grouped_forward, grouped_gradient
from regraft.backends.triton.kernels.grouped_hidden import hidden_forward
from regraft.backends.triton.kernels.grouped_low_bit import grouped_low_bit_forward
from regraft.backends.triton.kernels.grouped_low_bit_gradient import grouped_low_bit_gradient
from regraft.backends.triton.kernels.grouped_low_bit_hidden import low_bit_hidden_forward
from regraft.backends.triton.kernels.linear import linear_forward
from regraft.backends.triton.kernels.linear_attending import (
    linear_attention_forward,
    linear_attention_gradient,
)
from regraft.backends.triton.kernels.linear_features import feature_gradient
from regraft.backends.triton.kernels.logit_loss import logit_loss, logit_loss_gradient
from regraft.backends.triton.kernels.logit_losses import loss_in_place, scale_rows
from regraft.backends.triton.kernels.low_bit import low_bit_forward
from regraft.backends.triton.kernels.low_bit_integer import (
    low_bit_integer_forward,
    rounded_forward,
)
from regraft.backends.triton.kernels.newton import newton, newton_gradient
from regraft.backends.triton.kernels.norms import rms_norm, row_norm
from regraft.backends.triton.kernels.rope import rotate
from regraft.backends.triton.kernels.row_norm_backward import row_norm_backward
from regraft.backends.triton.kernels.softmax import softmax_backward, softmax_forward
from tests.backends.triton.harness import interpreted


def wanted(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


X, Q = wanted(3, 5), wanted(1, 2, 3, 4)
TABLE = torch.linspace(0, 1, 6).reshape(3, 2)
STATISTICS = torch.linspace(0.5, 1, 3)
KV, BIAS, SINKS, LENGTHS = wanted(1, 1, 5, 4), wanted(3, 5), wanted(2), torch.tensor([4])
KEYS, VALUES, STATE = wanted(1, 2, 3, 4), wanted(1, 2, 3, 5), wanted(1, 2, 8, 6)
SUMS = torch.linspace(0.5, 1, 6).reshape(1, 2, 3)
LABELS, LOSS_LABELS = torch.tensor([6, -1, 0]), torch.tensor([4, -1, 0])
CODES, SCALES = torch.arange(42, dtype=torch.uint8).reshape(2, 3, 7), torch.ones(2, 1, 7)
BYTES = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
SETTINGS = (0.5, 2.0, 1, 2, 0, 0.0, 1.0, "ieee")
"""Scale, soft cap, offset, window, clip and precision."""
CALLS = {
    "row_norm": (row_norm, (X, wanted(3, 5), wanted(5), wanted(5), 1e-5, True)),
    "row_norm without extras": (row_norm, (X, None, wanted(5), None, 1e-5, False)),
    "row_norm_backward": (
        row_norm_backward,
        (X.detach(), None, X.detach(), STATISTICS.new_ones(5), STATISTICS, STATISTICS, True, True),
    ),
    "softmax": (softmax_forward, (X, False)),
    "softmax_backward": (softmax_backward, (X.detach(), X.detach())),
    "gated": (gated, (X, wanted(3, 5), "silu")),
    "gated_backward": (gated_backward, (X.detach(), X.detach(), X.detach(), "gelu")),
    "rope": (
        rotate,
        (Q, Q.detach().clone().requires_grad_(), TABLE.cos(), TABLE.sin(), False, False),
    ),
    "attention": (
        attention_forward,
        (Q, KV, KV.detach().clone().requires_grad_(), BIAS, LENGTHS, None, SINKS, *SETTINGS),
    ),
    "attention_backward": (
        attention_backward,
        (
            *(x.detach() for x in (Q, Q, KV, KV, BIAS)),
            LENGTHS,
            None,
            Q.detach(),
            torch.zeros(1, 2, 3, 2),
            *SETTINGS,
            True,
        ),
    ),
    "attention_decode": (
        decode,
        (
            Q[:, :, 0].detach(),
            KV.detach(),
            KV.detach(),
            BIAS.detach()[0],
            LENGTHS,
            LENGTHS - 1,
            SINKS.detach(),
            0.5,
            2.0,
            2,
            0.0,
            -5.0,
            5.0,
            "ieee",
        ),
    ),
    "cross_entropy": (cross_entropy_forward, (X, wanted(7, 5), LABELS, 2.0, 0.0, "ieee")),
    "logit_gradient": (
        logit_gradient,
        (
            X.detach(),
            wanted(7, 5).detach(),
            LABELS,
            torch.zeros(3, 2),
            STATISTICS,
            2,
            4,
            2.0,
            "ieee",
        ),
    ),
    "logit_loss": (logit_loss, (X, LOSS_LABELS, 0.1, 0.01, 2.0)),
    "logit_loss_gradient": (
        logit_loss_gradient,
        (X.detach(), LOSS_LABELS, torch.zeros(3, 2), STATISTICS, 0.1, 0.01, 2.0),
    ),
    "logit_loss_in_place": (
        loss_in_place,
        (X.detach().clone(), LOSS_LABELS, torch.ones(1), 0.1, 0.01, 0.0),
    ),
    "scale_rows": (scale_rows, (X.detach().clone(), STATISTICS)),
    "newton_inverse": (newton, (wanted(2, 4, 4), wanted(2, 4, 4), 2, "ieee")),
    "newton_inverse_gradient": (
        newton_gradient,
        (*(wanted(2, 4, 4).detach() for _ in range(3)), 2, "ieee"),
    ),
    "filtered_logit_gradient": (
        filtered_logit_gradient,
        (
            X.detach(),
            wanted(7, 5).detach(),
            LABELS,
            torch.zeros(3, 2),
            STATISTICS,
            2,
            4,
            2.0,
            0.25,
            "ieee",
        ),
    ),
    "filtered_product": (
        filtered_product,
        (X.detach(), X.detach(), torch.ones(1, 1, dtype=torch.uint8), True, "ieee"),
    ),
    "linear_attention": (
        linear_attention_forward,
        (
            Q,
            KEYS,
            VALUES,
            -wanted(1, 2, 3).detach().abs(),
            STATE,
            0.5,
            0.1,
            "hedgehog",
            True,
            "ieee",
        ),
    ),
    "linear_attention of a token": (
        linear_attention_forward,
        (*(Q.detach()[:, :, :1] for _ in range(3)), None, None, 1.0, 0.0, "none", False, "ieee"),
    ),
    "linear_attention_gradient": (
        linear_attention_gradient,
        (
            *(x.detach() for x in (VALUES, VALUES, KEYS)),
            None,
            None,
            SUMS,
            SUMS,
            1.0,
            "hedgehog",
            "queries",
            True,
            "ieee",
        ),
    ),
    "gated_delta": (
        gated_delta_forward,
        (Q, KEYS, VALUES, None, wanted(1, 2, 3), wanted(1, 2, 4, 5), 0.5, "ieee"),
    ),
    "gated_delta of a token": (
        gated_delta_forward,
        (*(Q.detach()[:, :, :1] for _ in range(4)), None, None, 1.0, "ieee"),
    ),
    "gated_delta_gradient": (
        gated_delta_gradient,
        (
            *(x.detach() for x in (Q, KEYS, VALUES)),
            -wanted(1, 2, 3, 4).detach().abs(),
            SUMS,
            None,
            VALUES.detach(),
            None,
            0.5,
            "ieee",
        ),
    ),
    "linear_feature_gradient": (
        feature_gradient,
        (Q.detach(), KEYS.detach(), wanted(1, 2, 3, 8).detach(), SUMS, "hedgehog"),
    ),
    "grouped_linear": (
        grouped_forward,
        (X, wanted(2, 7, 5), torch.tensor([1, 1]), wanted(2, 7), wanted(3), "ieee"),
    ),
    "grouped_hidden": (
        hidden_forward,
        (
            X,
            torch.tensor([0, 2, 1, 1]),
            torch.tensor([1, 2]),
            *(wanted(2, 7, 5) for _ in range(2)),
            wanted(2, 7),
            None,
            "gelu_tanh",
            "clip_after",
            0.5,
            0.7,
            1.0,
            "ieee",
        ),
    ),
    "grouped_linear_gradient": (
        grouped_gradient,
        (X.detach(), X.detach(), torch.tensor([1, 2]), "ieee"),
    ),
    "grouped_low_bit_linear": (
        grouped_low_bit_forward,
        (
            X,
            CODES,
            SCALES,
            None,
            None,
            torch.tensor([1, 1]),
            wanted(2, 7),
            wanted(3),
            8,
            4,
            5,
            "ieee",
        ),
    ),
    "grouped_low_bit_gradient": (
        grouped_low_bit_gradient,
        (
            wanted(3, 7).detach(),
            CODES,
            SCALES,
            None,
            None,
            torch.tensor([1, 2]),
            8,
            4,
            5,
            5,
            "ieee",
        ),
    ),
    "grouped_low_bit_hidden": (
        low_bit_hidden_forward,
        (
            X,
            torch.tensor([0, 2, 1, 1]),
            torch.tensor([1, 2]),
            CODES,
            SCALES,
            None,
            CODES,
            SCALES,
            None,
            torch.linspace(-1, 1, 16),
            wanted(2, 7),
            None,
            0,
            4,
            5,
            "silu",
            "clip",
            0.5,
            0.7,
            1.0,
            "ieee",
        ),
    ),
    "low_bit_linear": (
        low_bit_forward,
        (
            X,
            BYTES[:, :5].T.contiguous()[:3],
            STATISTICS[:2, None].expand(2, 4),
            None,
            None,
            8,
            4,
            16,
            True,
            "ieee",
        ),
    ),
    "low_bit_integer_linear": (
        low_bit_integer_forward,
        (
            BYTES,
            STATISTICS.new_ones(4),
            BYTES[:3],
            STATISTICS.new_ones(1, 6),
            BYTES[:1],
            120,
            0,
            4,
            6,
        ),
    ),
    "rounded_low_bit_linear": (
        rounded_forward,
        (X, 0.1, BYTES[:3], STATISTICS.new_ones(1, 6), None, 3, True, 8, 4, 5),
    ),
    "linear": (linear_forward, (X, wanted(7, 5), wanted(7), "silu", "ieee")),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck_passes(name):
    operator, arguments = CALLS[name]
    with interpreted():
        # compiled graphs of kernels that are interpreted would run Python inside the graph
        torch.library.opcheck(
            operator,
            arguments,
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x):
        return rms_norm(x, self.weight) * 2


# PyTorch's own, when it exports with sizes that vary
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_export_keeps_an_operator_as_one_node():
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Block(), (torch.ones(3, 8),), dynamic_shapes=({0: batch},))
    calls = [
        str(node.target)
        for node in exported.run_decompositions().graph.nodes
        if node.op == "call_function"
    ]
    assert calls.count("regraft.row_norm.default") == 1


WITHOUT_INTERPRETER = """
import json, torch
from regraft import kernels
torch.manual_seed(0)
x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
w = torch.randn(6, dtype=torch.float64, requires_grad=True)
b = torch.randn(6, dtype=torch.float64, requires_grad=True)
q = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
s = torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True)
k = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
v = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
angle = torch.randn(3, 2, dtype=torch.float64)
cache = torch.cat((v, torch.full_like(v, torch.nan)), 2).detach().requires_grad_()
behind = [
    torch.autograd.grad(function(q, cache[..., :1].expand(1, 2, 6, 4), cache).sum(), (q, cache))
    for function in (
        lambda q, k, v: kernels.attention(q, k, v, lengths=torch.tensor([3])),
        lambda q, k, v: kernels.entmax_attention(q, k, v, lengths=torch.tensor([3])),
    )
]
none = [f(q, k[:, :, :0], v[:, :, :0]) for f in (kernels.attention, kernels.entmax_attention)]
good = {
    "behind lengths": all(x.isfinite().all().item() for pair in behind for x in pair),
    "no keys": not any(x.any().item() for x in none),
    "layer_norm": torch.autograd.gradcheck(kernels.layer_norm, (x, w, b)),
    "add_rms_norm": torch.autograd.gradcheck(kernels.add_rms_norm, (x, x, w)),
    "softmax": torch.autograd.gradcheck(kernels.softmax, (x,)),
    "swiglu": torch.autograd.gradcheck(kernels.swiglu, (x, x)),
    "geglu": torch.autograd.gradcheck(kernels.geglu, (x, x)),
    "rope": torch.autograd.gradcheck(lambda q: kernels.rope(q, q, angle.cos(), angle.sin()), (q,)),
    "attention": torch.autograd.gradcheck(
        lambda q, m, s: kernels.attention(
            q, q[:, :1], q[:, :1], m, window=(-1, 0), sinks=s, softcap=2.0, clip=(-0.01, 1.0)
        ),
        (q, x[:3, :3], w[:2]),
    ),
    "linear_attention": torch.autograd.gradcheck(
        lambda q, g, s: kernels.linear_attention(
            q, q[:, :1], q[:, 1:, :, :3], -g.abs()[:3, :3].sum(0), state=s, scale=0.5
        ),
        (q, x, s),
    ),
    **{
        name: torch.autograd.gradcheck(
            lambda q, k, v, g, s: kernels.linear_attention(
                q, k, v, -g.abs()[:3, :3].sum(0), state=s, scale=0.5, feature_map=name,
                normalize=True, epsilon=5.0,
            ),
            (q, k, v, x, s.detach().repeat(1, 2, repeats, 1).requires_grad_()),
        )
        for name, repeats in (("elu", 1), ("hedgehog", 2))
    },
    **{
        f"gated_delta_attention, {name}": torch.autograd.gradcheck(
            lambda q, k, v, x, w, s: kernels.gated_delta_attention(
                q, k, v, gates(x), w[:3].sigmoid(), state=s, scale=0.5
            ),
            (q, k, v, x, w, s.detach().repeat(1, 2, 1, 1)[..., :2].requires_grad_()),
        )
        for name, gates in (("heads", lambda x: -x.abs()[:3, :3].sum(0)),
                            ("channels", lambda x: -x.abs()[:3, None, None, :4].transpose(0, 2)))
    },
    "linear_cross_entropy": torch.autograd.gradcheck(
        lambda x, w: kernels.linear_cross_entropy(
            x, w[None] * x[:3], torch.tensor([2, -100, 0, 1]), softcap=1.5
        ),
        (x, w),
    ),
    "cross_entropy": torch.autograd.gradcheck(
        lambda x: kernels.cross_entropy(
            x, torch.tensor([2, -100, 0, 1]), label_smoothing=0.1, z_loss=0.1, softcap=1.5
        ),
        (x,),
    ),
    "newton_inverse": torch.autograd.gradcheck(
        lambda q: kernels.newton_inverse(q[:, :, :, :3], steps=2), (q,)
    ),
    "attention_decode": torch.autograd.gradcheck(
        lambda q, w: kernels.attention_decode(
            q[:, :, 0], q[:, :1], q[:, 1:], w[:3], sinks=w[:2], softcap=2.0, window=1
        ),
        (q, w),
    ),
    "filtered": torch.autograd.gradcheck(
        lambda x, w: kernels.linear_cross_entropy(
            x, w[None] * x[:3], torch.tensor([2, -100, 0, 1]), filter_below=1e-9
        ),
        (x, w),
    ),
    "grouped_linear": torch.autograd.gradcheck(
        lambda x, q: kernels.grouped_linear(x[:, :4], q[0], torch.tensor([3, 1])), (x, q)
    ),
    "experts": torch.autograd.gradcheck(
        lambda x, q, w: kernels.experts(
            x[:2, :4], torch.tensor([[0, 1], [1, 0]]), w.reshape(3, 2)[:2], q[0],
            q[0].transpose(1, 2), "silu", q[0], limit=0.9, up_offset=1.0,
        ),
        (x, q, w),
    ),
    "low_bit_experts": torch.autograd.gradcheck(
        lambda x, w: kernels.low_bit_experts(
            x[:2, :6], torch.tensor([[0, 1], [1, 0]]), w[:4].reshape(2, 2),
            *(
                kernels.CodedMatrices(
                    torch.arange(36, dtype=torch.uint8).reshape(2, 3, 6) * 7 + shift,
                    torch.full((2, 1, 6), 0.1), zero=7,
                )
                for shift in (0, 1)
            ),
            "silu",
            kernels.CodedMatrices(
                torch.arange(36, dtype=torch.uint8).reshape(2, 3, 6) * 5,
                torch.full((2, 1, 6), 0.1), zero=7,
            ),
            up_offset=1.0,
        ),
        (x, w),
    ),
    "low_bit_linear": torch.autograd.gradcheck(
        lambda x: kernels.low_bit_linear(
            x, torch.arange(21, dtype=torch.uint8).reshape(3, 7), torch.ones(1, 7), zero=3
        ),
        (x,),
    ),
    "linear": torch.autograd.gradcheck(
        lambda x, w: kernels.linear(x, w[None], None, "gelu"), (x, w)
    ),
}
print(json.dumps(good))
"""

COMPILED = """
import json, torch
from regraft import kernels
torch.manual_seed(0)
x, r = torch.randn(2, 4, 6)
w, b = torch.randn(2, 6)
calls = {
    "softmax": (kernels.softmax, (x,)),
    "add_layer_norm": (kernels.add_layer_norm, (x, r, w, b)),
    "geglu": (kernels.geglu, (x, r)),
    "linear": (kernels.linear, (x, r, None, "relu")),
    "attention": (kernels.attention, (x[None, None], r[None, None], r[None, None])),
    "experts": (
        kernels.experts,
        (x, torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]]), r[:, :2], x[None].repeat(2, 1, 1),
         r.T[None].repeat(2, 1, 1), "gelu"),
    ),
    "gated_delta_attention": (
        kernels.gated_delta_attention,
        (x[None, None], r[None, None], r[None, None], -x[None, None].abs(), b[:4].sigmoid()),
    ),
    "linear_attention": (
        kernels.linear_attention, (x[None, None], r[None, None], r[None, None], -w[None, None, :4]),
    ),
}
good = {}
for name, (function, inputs) in calls.items():
    leaves = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in inputs
    ]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    found, expected = compiled(*leaves), function(*leaves)
    pairs = zip(found, expected) if isinstance(found, tuple) else [(found, expected)]
    good[name] = all(torch.equal(a, b) for a, b in pairs)
print(json.dumps(good))
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(WITHOUT_INTERPRETER, id="gradcheck"),
        pytest.param(COMPILED, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_references_on_a_cpu(program):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(found.values()), found
    assert len(found) >= 4


def test_a_launch_makes_the_operands_gpu_the_current_one(monkeypatch):
    with FakeTensorMode():
        x = torch.empty(2, device="cuda:1")
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    operators._on_their_device((None, x, 1))
    assert entered == []  # the only one is the current one
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    operators._on_their_device((None, x, 1))
    assert entered == [torch.device("cuda:1")]


TABLE_OF_TWO = {
    "k": {
        "default": {"any": [{"up_to": 8, "block": 1}, {"up_to": 64, "block": 2}]},
        "H200": {"float16": [{"up_to": 64, "block": 3}]},
    }
}


@pytest.mark.parametrize(
    ("device", "dtype", "size", "block"),
    [
        ("H200", "float16", 5, 3),
        ("H200", "float32", 5, 1),
        ("B300", "float16", 9, 2),
        ("B300", "float16", 1000, 2),
    ],
)
def test_configurations_fall_back_to_the_default(device, dtype, size, block):
    assert configs.choose("k", device, dtype, size, TABLE_OF_TWO)["block"] == block


def test_a_kernel_without_a_default_is_refused(tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps({"k": {"H200": {"any": []}}}))
    with pytest.raises(ValueError, match="has no `default` entry"):
        configs.read_table(path)


def test_buckets_out_of_order_are_refused(tmp_path):
    path = tmp_path / "configs.json"
    buckets = [{"up_to": 8}, {"up_to": 4}]
    path.write_text(json.dumps({"k": {"default": {"any": buckets}}}))
    with pytest.raises(ValueError, match="out of order"):
        configs.read_table(path)
