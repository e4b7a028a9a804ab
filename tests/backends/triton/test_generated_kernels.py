"""Chains that become generated kernels: results, gradients, source."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import regraft
from regraft.backends.triton.package import load_package, save_package
from tests.backends.triton.harness import SIZES, check, interpreted, laid_out

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def packaged(function, inputs, folder, dynamic=None):
    """Returns a function as a package, and the kernels of that."""
    module = regraft.capture(Of(function).eval(), inputs, dynamic_shapes=dynamic)
    folder.mkdir()
    save_package(module, folder)
    net = load_package(folder)
    return net, sys.modules[f"{type(net).__module__.rpartition('.')[0]}.kernels"]


def generated(kernels):
    """Returns the names of the generated operators of a package."""
    text = ast.parse(Path(kernels.__file__).read_text())
    made = [item.name for item in text.body if isinstance(item, ast.FunctionDef)]
    return [name.removeprefix("_differentiate_") for name in made
            if name.startswith("_differentiate_")]  # fmt: skip


def values(*shape, seed=0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return laid_out((torch.randn(shape, generator=generator) * scale).to(dtype), "contiguous")


def masked_softmax(x, mask):
    return torch.softmax(x * 0.3 + (1 - mask[:, None, :]) * -3.0, -1) * 2


def gated_norm(x, gain, bias):
    return torch.sigmoid(F.layer_norm(x.tanh() * 2, x.shape[-1:], gain, bias)) * x


def scaled(x, y):
    largest = x.abs().amax(-1, keepdim=True)
    return (x / (largest + 0.1)).exp() * y, largest


def activations(x, y):
    return F.mish(x) + F.elu(y) * F.hardswish(x) - F.leaky_relu(x, 0.2) / (1 + F.softplus(y))


def clipped(x, row):
    return torch.where(x > row, x.clamp(-1, 1) ** 2, (x + 3).relu().sqrt() - row)


def normalized(x, y):
    return F.normalize(x + y, dim=-1) * F.rms_norm(x + y, x.shape[-1:], eps=1e-6)


def log_odds(x, bias):
    return (torch.log_softmax(x + bias, -1) * torch.softmax(x + bias, -1)).sum(-1)


CHAINS = {
    "masked softmax": (masked_softmax, lambda n: (values(2, 3, n), values(2, n, seed=1))),
    "gated norm": (
        gated_norm,
        lambda n: (values(5, n), values(n, seed=1), values(n, seed=2)),
    ),
    "scaled": (scaled, lambda n: (values(2, 3, n), values(2, 3, n, seed=1))),
    "activations": (activations, lambda n: (values(3, n, scale=3), values(3, n, seed=1))),
    "clipped": (clipped, lambda n: (values(3, n, scale=3), values(3, 1, seed=1))),
    "normalized": (normalized, lambda n: (values(3, n), values(n, seed=1))),
    "log odds": (log_odds, lambda n: (values(3, n, scale=4), values(n, seed=1))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_kernel_and_right(name, tmp_path):
    function, inputs = CHAINS[name]
    net, kernels = packaged(function, inputs(65), tmp_path / "package")
    assert len(generated(kernels)) == 1
    check(net, function, inputs(65))


@pytest.mark.parametrize("name", ["gated norm", "clipped", "log odds"])
def test_one_kernel_serves_all_sizes(name, tmp_path):
    function, inputs = CHAINS[name]
    width = torch.export.Dim("width", min=2, max=4096)
    given = inputs(65)
    dynamic = tuple({x.dim() - 1: width} if x.shape[-1] == 65 else {} for x in given)
    net, kernels = packaged(function, given, tmp_path / "package", dynamic=(dynamic,))
    assert len(generated(kernels)) == 1
    for size in SIZES[1:]:
        check(net, function, inputs(size))


@pytest.mark.parametrize("name", ["masked softmax", "gated norm", "normalized", "log odds"])
def test_rows_too_long_for_registers(name, tmp_path, monkeypatch):
    function, inputs = CHAINS[name]
    net, kernels = packaged(function, inputs(100), tmp_path / "package")
    bucket = {"up_to": 1, "rows": 2, "max_block": 32, "warps": 4}
    monkeypatch.setitem(kernels.CONFIGS, "generated_rows", {"default": {"any": [bucket]}})
    check(net, function, inputs(100))


def test_a_row_of_minus_infinity_first(tmp_path, monkeypatch):
    """The first block of a row has nothing to subtract."""
    function, inputs = CHAINS["masked softmax"]
    x, mask = inputs(100)
    net, kernels = packaged(function, (x, mask), tmp_path / "package")
    bucket = {"up_to": 1, "rows": 2, "max_block": 32, "warps": 4}
    monkeypatch.setitem(kernels.CONFIGS, "generated_rows", {"default": {"any": [bucket]}})
    x[:, :, :40] = -torch.inf
    with interpreted():
        found = net(x, mask)
    torch.testing.assert_close(found, function(x, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gated norm", "activations", "clipped"])
def test_of_few_bits(name, dtype, tmp_path):
    function, inputs = CHAINS[name]
    given = tuple(laid_out(x.to(dtype), "contiguous") for x in inputs(65))
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


@pytest.mark.parametrize("layout", ["padded rows", "transposed", "every second column"])
@pytest.mark.parametrize("name", ["masked softmax", "activations"])
def test_operands_of_any_strides(name, layout, tmp_path):
    function, inputs = CHAINS[name]
    given = tuple(laid_out(x, layout) for x in inputs(33))
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


def test_operands_with_some_of_the_leading_axes(tmp_path):
    def function(x, a, b, c):
        return (x * a + b).exp() - c

    given = (values(2, 3, 4, 33), values(2, 1, 4, 33, seed=1), values(3, 1, 1, seed=2),
             values(2, 1, 4, 1, seed=3))  # fmt: skip
    net, kernels = packaged(function, given, tmp_path / "package")
    assert len(generated(kernels)) == 1
    check(net, function, given)


def test_no_rows(tmp_path):
    function, inputs = CHAINS["gated norm"]
    net, _ = packaged(function, inputs(16), tmp_path / "package")
    _, gain, bias = inputs(16)
    assert net(torch.empty(0, 16), gain, bias).shape == (0, 16)


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_operators_pass_opcheck_and_stay_one_node(tmp_path):
    function, inputs = CHAINS["scaled"]
    net, kernels = packaged(function, inputs(9), tmp_path / "package")
    (name,) = generated(kernels)
    operator = getattr(kernels, name)
    given = [x.clone().requires_grad_() for x in inputs(9)]
    with interpreted():
        torch.library.opcheck(
            operator,
            tuple(given),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    nodes = torch.export.export(net, inputs(9)).run_decompositions().graph.nodes
    assert sum(name in str(node.target) for node in nodes) == 1


def test_source_names_operators_and_where_they_come_from(tmp_path):
    function, inputs = CHAINS["scaled"]
    net, kernels = packaged(function, inputs(9), tmp_path / "package")
    text = Path(kernels.__file__).read_text()
    assert "# reduce_max: " in text
    assert "test_generated_kernels.py:" in text
    assert "def reference_abs_max_add_and_3(" in text
    assert (
        "kernels.abs_max_add_and_3(" in Path(sys.modules[type(net).__module__].__file__).read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_generated_kernels_compile_without_spills(target, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.triton.generated_ahead_of_time", target],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row for row in rows if row["spilled"]] == []
    chains = [row for row in rows if not row["tile"]]
    around = [row for row in chains if "product" in row["chain"]]
    # gradients of a gate and of a norm; the rows that a product takes, and theirs
    assert (len(chains) - len(around), len(around)) == (2 * 11, 2 * (1 + 1 + 2 + 2))
    products = [row for row in rows if row["tile"]]
    # chains after alone, before too, those of f32, norms of the result
    assert len(products) == 2 * 3 + 2 * 2 + 4 * 2 + 2 + 1
    if target != "gfx942":
        # of 256 columns, a thread stores 8 bytes of a program's share of a sum over rows; of
        # planes, each of its 8 elements reads its channel
        shares = {"normal-256": 2, "planes": 5}
        assert [
            row for row in chains if row["wide"] + shares.get(row["chain"], 0) < row["narrow"]
        ] == []
        assert [row for row in products if not row["wide"]] == []
    if target == "sm_90":
        large = [row for row in products if row["tile"] >= 64 and row["chain"][0] == "p"]
        assert len(large) == 2 * 2 + 2 + 1
        assert all(row["wgmma"] for row in large)


def test_a_package_says_what_its_kernels_compute(tmp_path):
    function, inputs = CHAINS["scaled"]
    packaged(function, inputs(9), tmp_path / "package")
    (row,) = json.loads((tmp_path / "package" / "partition.json").read_text())["generated"]
    assert row["nodes"] == ["abs", "reduce_max", "add", "div", "exp", "mul"]
    assert row["shape"] == ["2", "3", "9"]
    assert row["saved_bytes"] > 0
    assert row["estimated_s"] < row["separate_s"]


def test_operands_of_several_dtypes_give_the_wider_one(tmp_path):
    """As in `torch.autocast`, where a product in f16 is added to what is kept in f32."""

    def residual(x, y):
        return x.tanh() * 2 + y

    inputs = values(3, 33), values(3, 33, seed=1)
    net, kernels = packaged(residual, inputs, tmp_path / "package")
    assert len(generated(kernels)) == 1
    for dtypes in ((torch.float16, torch.float32), (torch.float32, torch.float16)):
        given = [x.to(dtype).requires_grad_() for x, dtype in zip(inputs, dtypes, strict=True)]
        with interpreted():
            found = net(*given)
            gradients = torch.autograd.grad(found.sum(), given)
        want = residual(*given)
        assert found.dtype == want.dtype == torch.float32
        torch.testing.assert_close(found, want, rtol=2e-3, atol=2e-3)  # tanh in f16 is eager's
        for one, other in zip(gradients, torch.autograd.grad(want.sum(), given), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def in_two_dtypes(x, y, scale, mask):
    """Results of a dtype each: of x, of y, of both, of x beside a mask in f32."""
    own, other = (x.tanh() + 1) * scale, y.sigmoid() * 3
    return own, other, own * other, x.tanh() - mask.float() * 9, torch.where(y > x, own, 2 * own)


def test_each_result_has_the_dtype_that_pytorch_gives(tmp_path):
    inputs = values(3, 33), values(3, 33, seed=1), torch.tensor(2.0), values(3, 33, seed=2) > 0
    net, kernels = packaged(in_two_dtypes, inputs, tmp_path / "package")
    assert len(generated(kernels)) == 2  # the mask is another chain
    for dtype, other in ((torch.float16, torch.float32), (torch.float32, torch.bfloat16)):
        given = inputs[0].to(dtype), inputs[1].to(other), *inputs[2:]
        with interpreted():
            found = net(*given)
        want = in_two_dtypes(*given)
        assert [x.dtype for x in found] == [x.dtype for x in want]
        with FakeTensorMode() as mode:
            found = net(*map(mode.from_tensor, given))
        assert [x.dtype for x in found] == [x.dtype for x in want]
