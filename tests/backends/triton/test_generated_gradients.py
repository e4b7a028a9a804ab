"""Gradients of generated chains: kernels against autograd in f64, and what decides how."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F

from regraft.backends.triton import chain_gradients
from tests.backends.triton.harness import check, interpreted, laid_out
from tests.backends.triton.test_generated_kernels import CHAINS, generated, packaged, values

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

ROWS = "generated_gradient_rows"


def rows_of(net):
    """Returns what the package says of its generated kernels."""
    folder = Path(sys.modules[type(net).__module__].__file__).parent
    return json.loads((folder / "partition.json").read_text())["generated"]


def made(function, inputs, tmp_path):
    """Returns a function as a package of one kernel, whose gradient is one as well."""
    net, kernels = packaged(function, inputs, tmp_path / "package")
    assert [row["gradient"] for row in rows_of(net)] == ["kernel"]
    return net, kernels


def gradient_of(kernels):
    """Returns the operator of the gradient of the one generated kernel."""
    (name,) = generated(kernels)
    return getattr(kernels, f"{name}_gradient")


def smooth(x, y):
    wide = x.sin() * y.cos() + torch.erf(x) - (x * x + 1).log() * (y * y + 1).sqrt()
    return wide + (x.tanh() + 3).reciprocal() * F.softsign(y) + (y * y + 0.5) ** -0.5


def gates(x, y):
    first = F.gelu(x) + F.gelu(y, approximate="tanh") * F.silu(x) - F.softplus(y)
    return first + F.mish(x) * torch.sigmoid(y) - (-x).exp() / ((y * y + 1) ** -1.0)


def kinks(x, y):
    first = x.abs() + F.elu(y, 0.7) - F.leaky_relu(x, 0.1) + F.hardsigmoid(y) * F.hardswish(x)
    return first + x.clamp(-0.5, 0.75) * y.relu() + torch.maximum(x, y) - torch.minimum(x, 2 * y)


def steps(x, y):
    return x.floor() * y + torch.where(x > y, x * 2, y.ceil()) + y.clamp(min=0.1) ** 3


def statistics(x, y):
    spread = x.square().sum(-1, keepdim=True) + x.abs().sum(-1, keepdim=True)
    largest, least = x.amax(-1, keepdim=True), y.amin(-1, keepdim=True)
    length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return x * (spread + length) / (1 + largest - least) + y * x.mean(-1, keepdim=True)


ELEMENTS = {"smooth": smooth, "gates": gates, "kinks": kinks, "steps": steps,
            "statistics": statistics}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTS)
def test_slopes_are_those_of_autograd(name, tmp_path):
    inputs = (values(3, 65, scale=2), values(3, 65, seed=1))
    net, _ = made(ELEMENTS[name], inputs, tmp_path)
    check(net, ELEMENTS[name], inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_pass_gradients(dtype, tmp_path):
    def function(x, y):
        return x.float().exp() * y - (x * x).float()

    inputs = (values(3, 33, dtype=dtype), values(3, 33, seed=1))
    net, _ = made(function, inputs, tmp_path)
    check(net, function, inputs)


def test_slopes_at_kinks_are_those_of_autograd(tmp_path):
    """Zeros and bounds, where PyTorch has decided which side counts; ties share a maximum."""

    def function(x, y):
        first = x.relu() + x.abs() + x.clamp(-1, 1) + F.leaky_relu(x, 0.2) + F.elu(x)
        return first * y + torch.maximum(x, y) + x * x.amax(-1, keepdim=True)

    points = torch.tensor([-1.0, 0.0, 1.0, 2.0, 2.0]).repeat(3, 5)
    x, y = (laid_out(each, "contiguous") for each in (points, points.flip(1)))
    net, _ = made(function, (x, y), tmp_path)
    check(net, function, (x, y))


SHARED = {
    "columns": (33,),
    "columns, all axes": (1, 1, 33),
    "rows": (2, 4, 1),
    "one number": (1,),
    "some rows": (4, 33),
    "other rows": (2, 1, 33),
    "some rows, one each": (4, 1),
}


def others_slow(names, fast):
    """Returns parameters, all but a few of them marked as slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("kind", ["elements", "rows", "long rows"])
@pytest.mark.parametrize("name", others_slow(SHARED, ("columns", "one number", "other rows")))
def test_gradients_of_shared_operands_are_sums(name, kind, tmp_path, monkeypatch):
    def function(x, shared):
        if kind == "elements":
            return (x * shared).exp() + shared.tanh()
        return torch.softmax(x * shared, -1) * (shared * shared + 1).sqrt()

    inputs = (values(2, 4, 33), values(*SHARED[name], seed=1))
    net, kernels = made(function, inputs, tmp_path)
    if kind == "long rows":
        bucket = {"up_to": 1, "rows": 2, "max_block": 16, "warps": 4, "per_processor": 1}
        monkeypatch.setitem(kernels.CONFIGS, ROWS, {"default": {"any": [bucket]}})
    check(net, function, inputs)


LONG = ("masked softmax", "gated norm", "normalized", "log odds")


@pytest.mark.parametrize("name", others_slow(LONG, ("gated norm", "log odds")))
def test_gradients_of_rows_too_long_for_registers(name, tmp_path, monkeypatch):
    function, inputs = CHAINS[name]
    net, kernels = made(function, inputs(100), tmp_path)
    bucket = {"up_to": 1, "rows": 2, "max_block": 32, "warps": 4, "per_processor": 1}
    monkeypatch.setitem(kernels.CONFIGS, ROWS, {"default": {"any": [bucket]}})
    check(net, function, inputs(100))


def test_a_program_sums_over_several_tiles_of_rows(tmp_path, monkeypatch):
    function, inputs = CHAINS["gated norm"]
    _, gain, bias = inputs(17)
    given = (values(61, 17), gain, bias)
    net, kernels = made(function, given, tmp_path)
    bucket = {"up_to": 1, "rows": 4, "max_block": 32, "warps": 4, "per_processor": 1}
    monkeypatch.setitem(kernels.CONFIGS, ROWS, {"default": {"any": [bucket]}})
    monkeypatch.setattr(kernels, "num_processors", lambda device: 3)
    check(net, function, given)


def test_a_value_that_is_expanded_has_every_column(tmp_path):
    def function(x, row):
        wide = row.expand(3, 33) * 2
        return wide, (wide + x).exp()

    inputs = (values(3, 33), values(3, 1, seed=1))
    net, _ = packaged(function, inputs, tmp_path / "package")
    check(net, function, inputs)


def test_only_what_is_needed_is_computed(tmp_path):
    function, inputs = CHAINS["gated norm"]
    given = [x.clone() for x in inputs(65)]
    net, kernels = made(function, given, tmp_path)
    gradient = gradient_of(kernels)
    given[1].requires_grad_()
    with interpreted():
        net(*given).sum().backward()
        x, *_, empty = gradient(*(g.detach() for g in given), torch.ones(5, 65), True, True, False)
    expected = torch.autograd.grad(function(*given).sum(), given[1])[0]
    torch.testing.assert_close(given[1].grad, expected, rtol=1e-5, atol=1e-6)
    assert x.shape == (5, 65)
    assert empty.numel() == 0


def test_a_result_that_nothing_reads_has_no_gradient(tmp_path):
    function, inputs = CHAINS["scaled"]
    net, _ = made(function, inputs(9), tmp_path)
    for kept in (0, 1):
        check(lambda *x, kept=kept: net(*x)[kept] + 0 * x[1].sum(),
              lambda *x, kept=kept: function(*x)[kept] + 0 * x[1].sum(), inputs(9))  # fmt: skip


def test_no_rows_give_zeros(tmp_path):
    function, inputs = CHAINS["gated norm"]
    net, _ = made(function, inputs(16), tmp_path)
    _, gain, bias = inputs(16)
    gain.requires_grad_()
    with interpreted():
        net(torch.empty(0, 16), gain, bias).sum().backward()
    assert torch.equal(gain.grad, torch.zeros(16))


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_gradients_pass_opcheck_and_compile(tmp_path):
    function, inputs = CHAINS["scaled"]
    net, kernels = made(function, inputs(9), tmp_path)
    gradient = gradient_of(kernels)
    x, y = inputs(9)
    handed = (torch.ones(2, 3, 1), torch.ones(2, 3, 9))
    with interpreted():
        torch.library.opcheck(
            gradient,
            (x, y, *handed, True, False),
            test_utils=("test_schema", "test_faketensor"),
        )
    reference = gradient.on_cpu(x, y, *handed, True, True)
    given = [each.clone().requires_grad_() for each in (x, y)]
    expected = torch.autograd.grad(function(*given), given, handed[::-1])
    torch.testing.assert_close(reference, expected)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*given), given, handed[::-1]), expected)


def test_without_a_rule_the_reference_is_differentiated(tmp_path, monkeypatch):
    slopes = chain_gradients.slopes_of
    monkeypatch.setattr(
        chain_gradients, "slopes_of", lambda node: None if node.op.name == "tanh" else slopes(node)
    )
    function, inputs = CHAINS["gated norm"]
    net, kernels = packaged(function, inputs(33), tmp_path / "package")
    assert [row["gradient"] for row in rows_of(net)] == ["reference (`tanh` has no rule)"]
    assert not any(name.endswith("_gradient") for name in vars(kernels))
    check(net, function, inputs(33))
