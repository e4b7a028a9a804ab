"""`bisect`: the first broken pass, the match within it, and a reproducer that fails by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from regraft.api import convert
from regraft.bisection import Finding, bisect
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.rewrite import Reject, Rule, RuleSet
from regraft.ir.text import parse_module, print_module, read_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.cleanup import Canonicalize
from regraft.passes.protocol import Context, Contract, Exact, Pass, PassResult
from regraft.passes.rule_pass import pass_of_rules
from tests.cli.snapshot import run

LAYERS = 12


def stack() -> Module:
    """Returns 12 layers of relu(x @ w + b) - 1; the widths tell the layers apart."""
    widths = [4 + i for i in range(LAYERS + 1)]
    head, lines, x = ["symbol B"], [], "x"
    for i in range(LAYERS):
        k, n = widths[i], widths[i + 1]
        head.append(f"weight @w{i} : f32[{k}, {n}] role=param = random({i})")
        head.append(f"weight @b{i} : f32[{n}] role=param = random({100 + i})")
        lines += [
            f"%w{i} = weight @w{i}", f"%b{i} = weight @b{i}", f"%m{i} = matmul(%{x}, %w{i})",
            f"%a{i} = add(%m{i}, %b{i})", f"%r{i} = tanh(%a{i})", f"%h{i} = sub(%r{i}, %one)",
        ]  # fmt: skip
        x = f"h{i}"
    body = "\n".join(["%one = literal f32[] 1", *lines, f"return %{x}"])
    return parse_module("\n".join([*head, f"graph(%x : f32[B, 4]) {{\n{body}\n}}\n"]))


class SubAsAdd(Rule):
    """Right: x - y -> x + (-y)."""

    def pattern(self, p: Any, x: Any, y: Any) -> Any:
        return p.sub(x, y)

    def apply(self, plan: Any, b: Any, x: Any, y: Any) -> Any:
        return b.op(OPS["add"], x, b.op(OPS["neg"], y))


class ForgetBias(Rule):
    """Wrong in the layer that is 11 wide: x @ w + c -> x @ w."""

    def pattern(self, p: Any, x: Any, w: Any, c: Any) -> Any:
        return p.add(p.matmul(x, w), c)

    def guard(self, m: Any, c: Any) -> Any:
        return m if c.shape == (11,) else Reject("another width")

    def apply(self, plan: Any, b: Any, x: Any, w: Any) -> Any:
        return b.op(OPS["matmul"], x, w)


PLANTED = pass_of_rules("planted", RuleSet(SubAsAdd(), ForgetBias()))()


@dataclass(frozen=True, slots=True)
class Drift:
    """Wrong without any rule: multiplies one weight."""

    name: ClassVar[str] = "drift"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        if "b3" not in module.weights:
            return PassResult(False)
        module.weights.set("b3", ArrayWeight(np.asarray(module.weights["b3"].numpy() * 2)))
        return PassResult(True)


@dataclass(frozen=True, slots=True)
class Raises:
    """Leaves a broken graph."""

    name: ClassVar[str] = "raises"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        for node in module.graph:
            if node.op is OPS["tanh"]:
                node.set_operands(())
        return PassResult(True)


def search(passes: list[Pass], tmp_path: Path) -> Finding:
    return bisect(stack(), passes, folder=tmp_path / "found")


def test_rule_and_match_are_found(tmp_path: Path) -> None:
    finding = search([Canonicalize(), PLANTED, Canonicalize()], tmp_path)
    assert (finding.pass_text, finding.pass_idx) == ("planted", 1)
    assert finding.rule == "forget-bias"
    assert finding.match == "add `a6`"
    assert finding.first_value == "a6"
    assert finding.reason.startswith("output `h11` differs by")
    assert finding.num_nodes == 2  # the product and the sum


def test_reproducer_fails_by_itself(tmp_path: Path) -> None:
    finding = search([PLANTED], tmp_path)
    assert finding.reproducer is not None
    module = read_module(finding.reproducer / "module.rg")
    assert set(module.weights) == {"w6", "b6"}
    again = bisect(module, [PLANTED], folder=tmp_path / "again")
    assert again.rule == "forget-bias"


def test_pass_without_rules_is_reduced_to_where_values_part(tmp_path: Path) -> None:
    finding = search([Canonicalize(), Drift()], tmp_path)
    assert (finding.pass_text, finding.rule) == ("drift", None)
    assert finding.first_value == "a3"
    assert finding.num_nodes == 1


def test_pass_that_breaks_the_graph_is_found(tmp_path: Path) -> None:
    finding = search([Canonicalize(), Raises()], tmp_path)
    assert finding.pass_text == "raises"
    assert finding.reason.startswith("VerifyError")
    assert finding.num_nodes is not None
    assert finding.num_nodes <= 10


def test_right_passes_give_no_finding(tmp_path: Path) -> None:
    rules = pass_of_rules("fine", RuleSet(SubAsAdd()))()
    assert search([Canonicalize(), rules], tmp_path).pass_text is None
    assert not (tmp_path / "found").exists()


class ForgetNeg(Rule):
    """Wrong: -exp(x) -> exp(x)."""

    def pattern(self, p: Any, x: Any) -> Any:
        return p.neg(p.exp(x))

    def apply(self, plan: Any, b: Any, x: Any) -> Any:
        return b.op(OPS["exp"], x)


STOPPED = """\
graph(%x : f32[B, 4]) {
  %e = exp(%x)
  %s = stop_gradient(%e)
  %y = neg(%s)
  return %y
}
"""


@pytest.mark.parametrize(
    ("target", "found"), [("ort-cpu", "forget-neg"), ("onnx", "forget-neg"), ("torch", None)]
)
def test_passes_meet_the_ends_of_gradients_that_the_target_has(
    target: str, found: str | None, tmp_path: Path
) -> None:
    module = parse_module(STOPPED)
    wrong = pass_of_rules("wrong", RuleSet(ForgetNeg()))()
    assert bisect(module, [wrong], target=target, folder=tmp_path).rule == found
    assert print_module(module) == print_module(parse_module(STOPPED))
    made = convert(module, None, target=target, passes=[wrong], check="off", dry_run=True).module
    assert (OPS["neg"] in [node.op for node in made.graph]) is (found is None)


def test_target_is_that_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.rg").write_text(STOPPED)
    (tmp_path / "r.yaml").write_text("regraft: 1\ntarget: ort-cpo\npasses:\n  - fuse\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["bisect", "m.rg", "--recipe", "r.yaml"], capsys)
    assert (code, "unknown target `ort-cpo`" in err) == (2, True)
    code, _, _ = run(["bisect", "m.rg", "--recipe", "r.yaml", "--target", "onnx"], capsys)
    assert code == 0


def test_reproducer_replays_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from regraft import Plugin, Rule\n"
        "class LoseRelu(Rule):\n"
        "    def pattern(self, p, x):\n        return p.relu(x)\n"
        "    def apply(self, plan, b, x):\n        return x\n"
        "PLUGIN = Plugin(api_version=1, name='lose', rules=(LoseRelu(),))\n"
    )
    text = "graph(%x : f32[B, 4]) {\n%a = neg(%x)\n%r = relu(%a)\n%y = exp(%r)\nreturn %y\n}\n"
    (tmp_path / "m.rg").write_text(text)
    monkeypatch.chdir(tmp_path)
    plugin_flag = ["--plugin", "plugin.py:PLUGIN"]
    code, _, _ = run(
        ["bisect", "m.rg", "--passes", "canonicalize,lose", *plugin_flag, "-o", "found"], capsys
    )
    assert code == 3
    (folder,) = (tmp_path / "found").iterdir()
    pipeline = (folder / "pipeline.txt").read_text().strip()
    code, _, err = run(
        ["opt", str(folder / "module.rg"), "--passes", pipeline, "--check=each", "--inputs",
         str(folder / "samples"), *plugin_flag],
        capsys,
    )  # fmt: skip
    assert code == 3
    assert "lose-relu" in err
