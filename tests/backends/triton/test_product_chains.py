"""Chains before and after products: results, gradients, which are taken, source."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch.nn import functional as F

import regraft
from regraft.backends.triton.package import save_package
from tests.backends.triton.harness import SIZES, check, interpreted, laid_out
from tests.backends.triton.test_generated_kernels import Of, generated, packaged, values

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def residual(x, weight, bias, other):
    return F.linear(x, weight, bias) + other


def scaled_residual(x, weight, bias, scale, other):
    """As a vision transformer scales its branches."""
    return other + F.linear(x, weight, bias) * scale


def gate(x, weight, up):
    return F.silu(up) * F.linear(x, weight)


def masked(x, weight, mask, row):
    return torch.where(mask > 0, F.linear(x, weight) * 0.125, mask).exp() - row


def halves(x, weight, bias):
    total = F.linear(x, weight, bias)
    return torch.sigmoid(total) * total, total


def gated_rows(gate, up, weight):
    return F.linear(F.silu(gate) * up, weight)


def normal_rows(x, gain, shift, weight, bias):
    return F.linear(F.layer_norm(x, x.shape[-1:], gain, shift), weight, bias)


def root_mean_square(x, gain, weight, other):
    return F.linear(F.rms_norm(x, x.shape[-1:], gain, eps=1e-6), weight) + other


def logarithms(x, weight):
    """A prologue that is infinite where a row has ended."""
    return F.linear(x.abs().log(), weight)


def weights(x, weight, bias, mask):
    """As a router chooses experts."""
    return torch.softmax(F.linear(x, weight, bias) * 0.5 + mask, -1)


def residual_norm(x, weight, other, gain, shift):
    total = F.linear(x, weight) + other
    return total, F.layer_norm(total, total.shape[-1:], gain, shift)


def unit_rows(x, weight):
    product = F.linear(x, weight)
    return product * torch.rsqrt(product.square().mean(-1, keepdim=True) + 1e-6)


def matrix(rows, columns, seed=7):
    return values(rows, columns, seed=seed, scale=columns**-0.5)


CHAINS = {
    "residual": (
        residual,
        lambda m, n, k: (values(m, k), matrix(n, k), values(n, seed=1), values(m, n, seed=2)),
    ),
    "scaled residual": (
        scaled_residual,
        lambda m, n, k: (
            values(2, m, k), matrix(n, k), values(n, seed=1), values(n, seed=2),
            values(2, m, n, seed=3),
        ),
    ),
    "gate": (gate, lambda m, n, k: (values(m, k), matrix(n, k), values(m, n, seed=2))),
    "masked": (
        masked,
        lambda m, n, k: (
            values(2, m, k), matrix(n, k), values(m, n, seed=1), values(2, m, 1, seed=2)
        ),
    ),
    "halves": (halves, lambda m, n, k: (values(m, k), matrix(n, k), values(n, seed=1))),
    "gated rows": (
        gated_rows, lambda m, n, k: (values(m, k), values(m, k, seed=1), matrix(n, k)),
    ),
    "normal rows": (
        normal_rows,
        lambda m, n, k: (
            values(m, k), values(k, seed=1), values(k, seed=2), matrix(n, k), values(n, seed=3)
        ),
    ),
    "root mean square": (
        root_mean_square,
        lambda m, n, k: (values(m, k), values(k, seed=1), matrix(n, k), values(m, n, seed=3)),
    ),
    "logarithms": (logarithms, lambda m, n, k: (values(m, k), matrix(n, k))),
    "weights": (
        weights,
        lambda m, n, k: (values(m, k), matrix(n, k), values(n, seed=1), values(m, n, seed=2)),
    ),
    "residual norm": (
        residual_norm,
        lambda m, n, k: (
            values(2, m, k), matrix(n, k), values(2, m, n, seed=1), values(n, seed=2),
            values(n, seed=3),
        ),
    ),
    "unit rows": (unit_rows, lambda m, n, k: (values(m, k), matrix(n, k))),
}  # fmt: skip
NAMES = {
    "residual": "linear_add",
    "scaled residual": "linear_mul_add",
    "gate": "linear_swish_mul",
    "masked": "linear_greater_mul_where_and_2",
    "halves": "linear_sigmoid_mul",
    "gated rows": "swish_mul_linear",
    "normal rows": "layer_norm_linear",
    "root mean square": "rms_norm_linear_add",
    "logarithms": "abs_log_linear",
    "weights": "linear_mul_add_softmax",
    "residual norm": "linear_add_layer_norm",
    "unit rows": "linear_mul_mean_add_and_3",
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_product_and_its_chains_are_one_kernel(name, tmp_path):
    function, inputs = CHAINS[name]
    net, kernels = packaged(function, inputs(9, 65, 33), tmp_path / "package")
    assert generated(kernels) == [NAMES[name]]
    check(net, function, inputs(9, 65, 33))


@pytest.mark.parametrize("name", ["residual", "normal rows"])
def test_one_kernel_serves_all_sizes(name, tmp_path):
    function, inputs = CHAINS[name]
    _, kernels = packaged(function, inputs(5, 7, 9), tmp_path / "package")
    operator = getattr(kernels, NAMES[name])
    for size in SIZES:
        small = min(size, 65)
        for m, n, k in ((size, 7, 9), (3, size, small), (small, 5, size)):
            given = inputs(m, n, k)
            bias = {"residual": 2, "normal rows": 4}[name]
            assert given[bias].shape == (n,)
            check(operator, function, given)


@pytest.mark.parametrize("name", ["scaled residual", "root mean square", "residual norm"])
def test_of_few_bits(name, tmp_path):
    function, inputs = CHAINS[name]
    given = tuple(laid_out(x.half(), "contiguous") for x in inputs(17, 33, 65))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert generated(kernels) == [NAMES[name]]
    check(net, function, given)


@pytest.mark.parametrize("layout", ["padded rows", "transposed", "every second column"])
@pytest.mark.parametrize("name", ["residual", "gated rows"])
def test_operands_of_any_strides(name, layout, tmp_path):
    function, inputs = CHAINS[name]
    given = tuple(x if x.dim() == 1 else laid_out(x, layout) for x in inputs(9, 17, 33))
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


def test_no_rows(tmp_path):
    function, inputs = CHAINS["residual"]
    net, _ = packaged(function, inputs(4, 5, 6), tmp_path / "package")
    _, weight, bias, _ = inputs(4, 5, 6)
    assert net(torch.empty(0, 6), weight, bias, torch.empty(0, 5)).shape == (0, 5)


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
@pytest.mark.parametrize("name", ["scaled residual", "halves", "normal rows"])
def test_operators_pass_opcheck_and_stay_one_node(name, tmp_path):
    function, inputs = CHAINS[name]
    net, kernels = packaged(function, inputs(3, 5, 9), tmp_path / "package")
    operator = getattr(kernels, NAMES[name])
    noted = []
    setattr(kernels, NAMES[name], lambda *args: noted.append(args) or operator(*args))
    with interpreted():
        net(*inputs(3, 5, 9))
    setattr(kernels, NAMES[name], operator)
    with interpreted():
        torch.library.opcheck(
            operator,
            tuple(x.clone().requires_grad_() for x in noted[0]),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    nodes = torch.export.export(net, inputs(3, 5, 9)).run_decompositions().graph.nodes
    assert sum(NAMES[name] in str(node.target) for node in nodes) == 1


@pytest.mark.parametrize(
    ("name", "gradient", "is_read"),
    [("residual", "handed through", False), ("scaled residual", "kernel", True),
     ("halves", "kernel", True), ("normal rows", "kernel", False)],
)  # fmt: skip
def test_gradients_of_chains_are_kernels(name, gradient, is_read, tmp_path):
    """A product is computed again only where a gradient depends on it."""
    function, inputs = CHAINS[name]
    _, kernels = packaged(function, inputs(3, 5, 9), tmp_path / "package")
    (row,) = partition(tmp_path / "package")["generated"]
    assert row["gradient"] == gradient
    assert f"is_read={is_read}" in Path(kernels.__file__).read_text()


def written(function, inputs, folder):
    """Writes the package of a function, which may call no kernel."""
    folder.mkdir()
    save_package(regraft.capture(Of(function).eval(), inputs), folder)


def partition(folder):
    return json.loads((folder / "partition.json").read_text())


def test_a_package_says_what_its_products_compute(tmp_path):
    function, inputs = CHAINS["root mean square"]
    packaged(function, inputs(9, 65, 33), tmp_path / "package")
    found = partition(tmp_path / "package")
    (row,) = found["generated"]
    assert row["nodes"] == ["rms_norm", "matmul", "add"]
    assert (row["prologue"], row["epilogue"]) == (["rms_norm"], ["add"])
    assert row["shape"] == ["9", "65"]
    assert row["saved_bytes"] > 0
    assert row["estimated_s"] < row["separate_s"]
    assert found["refused"] == []


def test_what_a_library_computes_faster_is_refused_with_both_times(tmp_path):
    """A large product of f32 loses more in a template than a sum costs."""
    given = (torch.zeros(2048, 4096), torch.zeros(512, 4096), torch.zeros(2048, 512))
    written(lambda x, weight, other: F.linear(x, weight) + other, given, tmp_path / "package")
    found = partition(tmp_path / "package")
    assert found["generated"] == []
    (row,) = found["refused"]
    assert row["product"].startswith("matmul: ")
    assert (row["prologue"], row["epilogue"]) == ([], ["add"])
    assert row["estimated_s"] > row["separate_s"]


def test_a_product_of_few_rows_takes_a_norm_that_many_rows_refuse(tmp_path):
    made = {}
    for rows in (8, 4096):
        x, gain, shift, weight, bias = CHAINS["normal rows"][1](2, 2, 1024)
        weight, bias = matrix(4096, 1024), values(4096)
        given = [x.bfloat16() for x in (x[:1].expand(rows, -1), gain, shift, weight, bias)]
        written(normal_rows, tuple(given), tmp_path / f"rows_{rows}")
        made[rows] = partition(tmp_path / f"rows_{rows}")
    assert [row["prologue"] for row in made[8]["generated"]] == [["layer_norm"]]
    assert made[4096]["generated"] == []
    assert [row["prologue"] for row in made[4096]["refused"]] == [["layer_norm"]]


def test_rows_that_no_tile_holds_are_reduced_apart(tmp_path):
    function, inputs = CHAINS["weights"]
    written(function, inputs(9, 257, 33), tmp_path / "package")
    found = partition(tmp_path / "package")
    assert [row["nodes"] for row in found["generated"]] == [["add", "mul", "add", "softmax"]]


def test_a_product_alone_stays_with_the_library(tmp_path):
    given = (values(8, 16), matrix(4, 16), values(4))
    folder = tmp_path / "package"
    written(lambda x, weight, bias: F.linear(x, weight, bias) @ weight, given, folder)
    found = partition(folder)
    assert (found["kernels"], found["generated"], found["refused"]) == ([], [], [])
    assert " @ " in (folder / "model.py").read_text()


def test_rows_that_others_read_are_made_once(tmp_path):
    def function(x, weight, other):
        rows = torch.sin(x) * 2
        return F.linear(rows, weight).exp(), F.linear(rows, other).sum(1)

    given = (values(8, 16), matrix(4, 16), matrix(5, 16, seed=3))
    net, _ = packaged(function, given, tmp_path / "package")
    rows = {row["kernel"]: row for row in partition(tmp_path / "package")["generated"]}
    assert rows["linear_exp"]["prologue"] == []
    check(net, function, given)


def test_a_result_that_is_read_before_the_chain_ends_is_its_own(tmp_path):
    """What the chain reads depends on the product: together they would wait for each other."""

    def function(x, weight, other):
        product = F.linear(x, weight)
        return product.exp() + torch.softmax(product @ other, -1)

    given = (values(8, 16), matrix(4, 16), matrix(4, 4, seed=3))
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


def test_views_that_undo_each_other_are_no_border(tmp_path):
    """As in models that join the leading axes for a product with a bias."""

    def function(x, weight, bias, other):
        flat = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
        return flat.reshape(*x.shape[:-1], weight.shape[1]) * 0.5 + other

    given = (values(2, 3, 9), matrix(9, 17), values(17, seed=1), values(2, 3, 17, seed=2))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert generated(kernels) == ["linear_mul_add"]
    check(net, function, given)


def test_an_operand_says_which_leading_axes_a_result_has(tmp_path):
    """As where heads are joined and the leading axes with them."""

    def function(x, weight, bias, other):
        flat = F.linear(x.transpose(1, 2).reshape(-1, weight.shape[1]), weight, bias)
        return other + flat.reshape(other.shape)

    given = (values(2, 2, 3, 4), matrix(17, 8), values(17, seed=1), values(2, 3, 17, seed=2))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert generated(kernels) == ["linear_add"]
    check(net, function, given)
