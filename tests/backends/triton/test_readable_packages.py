"""Packages are read: short lines, names that say what a tensor is, nothing of the machine."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch.nn import functional as F

import regraft
from regraft.backends.torch.naming import variable_hint
from regraft.backends.triton.line_width import MAX_COLUMNS, within_columns
from regraft.backends.triton.node_places import comment_of, place_of
from tests.backends.triton.harness import interpreted
from tests.backends.triton.test_package import imported

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

WIDTH = 32


class Block(nn.Module):
    """Norms under short names, before and behind products, with chains around them."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.up(self.n1(x))
        y = F.silu(self.n2(x)) * x
        return self.n2(x + self.down(y))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH), nn.Tanh()).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # zeros and ones would be folded away
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("packages") / "blocks"
    with interpreted():
        regraft.convert(net, folder, args=(torch.randn(2, 5, WIDTH),), target="triton")
    return folder


def sources(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}


def test_lines_are_short(package):
    long = [
        f"{name}:{number}: {line}"
        for name, text in sources(package).items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert long == []


def test_parameters_of_norms_are_named_by_their_role(package):
    text = sources(package)["kernels.py"]
    assert "* norm_weight + norm_bias" in text
    assert "n2" not in text.replace(".n2,", "")  # but for comments of where a kernel is used


def test_nothing_says_where_the_package_was_written(package):
    texts = {**sources(package), "partition.json": (package / "partition.json").read_text()}
    name = Path(__file__).name
    assert f"torch:0.n2, {name}:" in texts["kernels.py"]
    for text in texts.values():
        assert str(Path(__file__).parent) not in text
        assert str(Path.home()) not in text
        assert str(package.parent) not in text


def test_docstrings_say_what_a_function_is_for(package):
    tree = ast.parse(sources(package)["kernels.py"])
    said = {
        node.name: ast.get_docstring(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    assert said["reference_layer_norm_tanh"] == (
        "Returns what `layer_norm_tanh_kernel` writes, by PyTorch's own operators."
    )
    assert said["layer_norm_tanh_kernel"] == (
        "Writes what `reference_layer_norm_tanh` returns, ROWS rows at a time."
    )


def test_the_file_of_kernels_begins_with_what_it_holds(package):
    text = sources(package)["kernels.py"]
    made = json.loads((package / "partition.json").read_text())
    said = ast.get_docstring(ast.parse(text)).replace("\n", " ")
    assert f"From regraft's library: {', '.join(made['kernels'])}." in said
    names = [row["kernel"] for row in made["generated"]]
    assert f"Written for this model: {', '.join(names)}." in said
    call = "# `layer_norm_tanh`, called once, with f32[2, 5, 32], f32[32], f32[32] -> f32[2, 5, 32]"
    assert call in text.splitlines()


def test_ruff_finds_nothing(package):
    pytest.importorskip("ruff", reason="needs the extra `dev`")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", str(package)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


A, B, C = ("alpha" * 7, "bravo" * 7, "charlie" * 5)
LONG = {
    "call": (f"x = f({A}, {B}, {C})", ["x = f(", f"    {A},", f"    {B},", f"    {C},", ")"]),
    "short within": (f"x = ffff({A}, {B}).to(tl.float32)  ".strip() + ".to(tl.float16)",
                     ["x = ffff(", f"    {A}, {B}", ").to(tl.float32).to(tl.float16)"]),
    "sum": (f"x = {A} + {B} * ({C} - 1)", ["x = (", f"    {A}", f"    + {B} * ({C} - 1)", ")"]),
    "row": (f"return {A}, {B}, {C}", ["return (", f"    {A},", f"    {B},", f"    {C},", ")"]),
    "targets": (f"{A}, {B}, {C} = f(x)", ["(", f"    {A},", f"    {B},", f"    {C},", ") = f(x)"]),
    "list": (f"x = [f({A}) for {A} in {B}]",
             ["x = [", f"    f({A})", f"    for {A} in {B}", "]"]),
    "comment": (f"# {A} {B} {C}", [f"# {A} {B}", f"# {C}"]),
    "quotes": (f'x = f("{A}, + (", {B}, {C})',
               ["x = f(", f'    "{A}, + (",', f"    {B},", f"    {C},", ")"]),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), LONG.values(), ids=LONG)
def test_long_lines_are_broken(line, expected):
    found = within_columns(f"if x:\n    {line}\n    pass", 90)
    assert found.splitlines() == ["if x:", *(f"    {row}" for row in expected), "    pass"]
    assert ast.dump(ast.parse(found)) == ast.dump(ast.parse(f"if x:\n    {line}\n    pass"))


@pytest.mark.parametrize("line", [
    f"return lambda {A}, {B}: {C}", f"{A}[{B}, {C}] += x", f"x = {A}[{B}] = {C}",
    f"{A}[{B}] @= {C}", f"for {A}, {B} in f({C}): pass", f"with f({A}, {B}) as {C}: pass",
    f"assert {A}, {B} + {C}", f"{A}, {B} = {C} = f(x)", f"del {A}, {B}, {C}",
])  # fmt: skip
@pytest.mark.parametrize("columns", [30, 60, 90])
def test_no_line_means_something_else(line, columns):
    text = f"def f():\n    {line}\n"
    assert ast.dump(ast.parse(within_columns(text, columns))) == ast.dump(ast.parse(text))


def test_what_is_no_code_stays():
    text = f'"""Of {A} {B} {C}\n\n{A} {B} {C}\n"""\nx = 1  # {A} {B} {C}\n'
    assert within_columns(text) == text


class Placed:
    """Stands for a node that is somewhere."""

    def __init__(self, *loc):
        self.loc = loc
        self.op = type("Op", (), {"name": "add"})


@pytest.mark.parametrize(
    ("loc", "expected"),
    [
        (("torch:h.0", "/home/anna/net/model.py:42"), "torch:h.0, model.py:42"),
        (("C:\\Users\\anna\\model.py:42",), "model.py:42"),
        (("/env/lib/python3.12/site-packages/timm/layers/mlp.py:4",), "timm/layers/mlp.py:4"),
        (("C:\\env\\site-packages\\timm\\mlp.py:4",), "timm/mlp.py:4"),
        (("onnx:/layers.0/Add",), "onnx:/layers.0/Add"),
        (("torch:h", "model.py:4", "rule:fold"), "torch:h, model.py:4"),
    ],
)
def test_places_say_nothing_of_a_machine(loc, expected):
    assert place_of(Placed(*loc)) == expected
    assert comment_of(Placed(*loc)) == f"add: {expected}"


def test_a_node_without_a_place_is_its_operator():
    assert comment_of(Placed()) == "add"


def test_weights_are_named_by_part_and_tensor():
    module = regraft.capture(nn.Sequential(Block()), (torch.randn(1, 2, WIDTH),))
    names = {value.name: variable_hint(value) for node in module.graph for value in node.outputs}
    assert names["0.n2.weight"] == "n2_weight"
    assert names["0.n2.bias"] == "n2_bias"
    assert names["0.up.weight"] == "up_weight"


class Bounded(nn.Module):
    """Its operand has the name of a function that launches call."""

    def forward(self, x, min):
        return torch.softmax(torch.tanh(x) * min, -1)


def test_operands_hide_no_function_of_python(tmp_path):
    args = (torch.randn(4, 33), torch.randn(4, 33))
    with interpreted():
        regraft.convert(Bounded().eval(), tmp_path / "bounded", args=args, target="triton")
        assert imported(tmp_path / "bounded", "selftest").main(["--device", "cpu"]) == 0
    assert "min_value_ptr" in (tmp_path / "bounded" / "kernels.py").read_text()


def test_estimates_have_four_digits(package):
    made = json.loads((package / "partition.json").read_text())
    rows = [*made["generated"], *made["refused"]]
    times = [row[name] for row in rows for name in ("estimated_s", "separate_s")]
    assert times
    assert all(time > 0 and float(f"{time:.4g}") == time for time in times)
