"""`fuse` raises every spelling to one operator, computes the same, and leaves nothing to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.text import print_module
from regraft.ir.verify import check
from regraft.passes.check.module_check import check_module
from regraft.passes.check.runners import EvalRunner
from regraft.passes.check.samples import generate_samples
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context, PassResult
from tests.passes.analysis import test_norms, test_unary_functions
from tests.passes.analysis.spelled import spelled

ACTIVATIONS = {
    "gelu": test_unary_functions.ERF_GELU,
    "gelu_tanh": test_unary_functions.TANH_GELU,
    "hard_swish": test_unary_functions.HARD_SWISH,
}


def operators(module: Module) -> list[str]:
    return [node.op.name for node in module.graph if not node.op.traits & Trait.CONSTANT]


def fuse(module: Module) -> PassResult:
    """Runs `fuse`, and asserts that the result is well formed, equal and final."""
    source = module.clone()
    result = Fuse().run(module, Context())
    check(module, "full")
    assert result.changed == (print_module(source) != print_module(module))
    assert_equal(source, module)
    assert not Fuse().run(module, Context()).changed
    return result


def assert_equal(source: Module, result: Module) -> None:
    runner = EvalRunner(source)

    def runs(inputs: Mapping[str, Any]) -> bool:
        runner(inputs)
        return True

    report = check_module(
        runner, EvalRunner(source, oracle=True), EvalRunner(result),
        generate_samples(source, runs), contract=Fuse.contract,
    )  # fmt: skip
    report.raise_if_failed()
    assert report.num_samples >= 3


@pytest.mark.parametrize(
    ("name", "body"),
    [(name, body) for name, table in ACTIVATIONS.items() for body in table.values()],
)
def test_activations_become_one_operator(name: str, body: str) -> None:
    module = spelled(body)
    result = fuse(module)
    (op,) = operators(module)
    assert op == name.removesuffix("_tanh")
    assert result.stats == {f"raise-{op.replace('_', '-')}": 1}
    assert module.graph.outputs[0].producer.attrs.get("tanh", False) == (name == "gelu_tanh")


@pytest.mark.parametrize(
    ("name", "attrs", "body"),
    [row for row in test_unary_functions.OTHERS if row[0] != "relu2"],  # no operator computes it
)
def test_other_activations_become_one_operator(
    name: str, attrs: dict[str, float], body: str
) -> None:
    module = spelled(body)
    fuse(module)
    (op,) = operators(module)
    assert op == {"silu": "swish", "quick_gelu": "swish", "relu6": "clip"}.get(name, name)


@pytest.mark.parametrize("body", test_norms.LAYER_NORMS.values(), ids=test_norms.LAYER_NORMS)
def test_layer_norms_become_one_operator(body: str) -> None:
    module = spelled(body + test_norms.GAIN, weights=test_norms.WEIGHTS)
    fuse(module)
    assert operators(module) == ["layer_norm"]


@pytest.mark.parametrize("body", test_norms.RMS_NORMS.values(), ids=test_norms.RMS_NORMS)
def test_rms_norms_become_one_operator(body: str) -> None:
    module = spelled(body + "\n%y = mul(%g, %n)", weights={"g": "f32[16]"})
    fuse(module)
    assert operators(module) == ["rms_norm"]


def test_missing_gain_is_one_shared_constant() -> None:
    first = test_norms.LAYER_NORMS["pow, sqrt, div"].replace("%", "%a_").replace("%a_x", "%x")
    second = test_norms.LAYER_NORMS["mul, reciprocal"].replace("%x", "%a_n")
    module = spelled(f"{first}\n{second}".replace("%n =", "%y ="))
    fuse(module)
    assert operators(module) == ["layer_norm", "layer_norm"]
    assert sum(bool(node.op.traits & Trait.CONSTANT) for node in module.graph) == 1


def test_gain_and_bias_in_any_order_and_rank() -> None:
    body = test_norms.LAYER_NORMS["pow, sqrt, div"] + "\n%s = add(%n, %b)\n%y = mul(%s, %g)"
    module = spelled(body, weights={"g": "f32[1, 1, 16]", "b": "f32[1, 16]"})
    fuse(module)
    Canonicalize().run(module, Context())
    assert operators(module) == ["layer_norm"]


def test_shared_normal_values_become_two_norms() -> None:
    body = test_norms.LAYER_NORMS["mul, reciprocal"]
    body += "\n%p = mul(%n, %g)\n%q2 = mul(%n, %b)\n%y = add(%p, %q2)"
    module = spelled(body, weights=test_norms.WEIGHTS)
    fuse(module)
    assert operators(module) == ["layer_norm", "layer_norm", "add"]


def test_activation_of_a_norm_that_is_raised_too() -> None:
    """Both places are planned before either is rewritten; the activation reads the norm."""
    norm = test_norms.RMS_NORMS["pow, sqrt, div"]
    module = spelled(norm + "\n%s = sigmoid(%n)\n%y = mul(%n, %s)")
    fuse(module)
    assert operators(module) == ["rms_norm", "swish"]


def test_norm_over_another_axis_is_raised_between_transposes() -> None:
    body = test_norms.LAYER_NORMS["pow, sqrt, div"].replace("axes = [2]", "axes = [1]")
    module = spelled(body + "\n%y = relu(%n)", shape="B, 16, S")
    fuse(module)
    assert operators(module) == ["transpose", "layer_norm", "transpose", "relu"]


def test_statistics_over_the_batch_are_no_norm() -> None:
    body = test_norms.LAYER_NORMS["pow, sqrt, div"].replace("axes = [2]", "axes = [0]")
    module = spelled(body + "\n%y = relu(%n)", shape="B, 16, 8")
    assert not fuse(module).changed


def test_size_known_at_run_time_only_is_skipped() -> None:
    body = test_norms.LAYER_NORMS["pow, sqrt, div"]
    module = spelled(body + "\n%y = relu(%n)", shape="B, 4, S")
    result = fuse(module)
    assert not result.changed
    assert "known at run time only" in result.skipped[0].reason


def test_parameters_keep_their_names_and_roles() -> None:
    module = spelled(
        test_norms.LAYER_NORMS["pow, sqrt, div"] + test_norms.GAIN, weights=test_norms.WEIGHTS
    )
    before = {name: module.weights.role(name) for name in module.weights}
    fuse(module)
    assert {name: module.weights.role(name) for name in module.weights} == before
    (norm,) = [node for node in module.graph if node.op.name == "layer_norm"]
    assert [value.name for value in norm.inputs[1:]] == ["g", "b"]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_stacks_of_random_spellings(data: st.DataObject) -> None:
    """Norms and activations in a row: each is found whatever stands before and after it."""
    tables = [*ACTIVATIONS.values(), test_norms.LAYER_NORMS, test_norms.RMS_NORMS]
    lines: list[str] = []
    wanted: list[str] = []
    source = "x"
    for idx in range(data.draw(st.integers(2, 4))):
        table = data.draw(st.sampled_from(tables))
        body = table[data.draw(st.sampled_from(sorted(table)))]
        result = "n" if "reduce" in body else "y"
        for line in filter(None, map(str.strip, body.splitlines())):
            named = line.replace("%", f"%p{idx}_").replace(f"%p{idx}_x", f"%{source}")
            lines.append(named)
        source = f"p{idx}_{result}"
        wanted.append(
            "gelu" if table in list(ACTIVATIONS.values())[:2]
            else "hard_swish" if table is ACTIVATIONS["hard_swish"]
            else "layer_norm" if table is test_norms.LAYER_NORMS else "rms_norm"
        )  # fmt: skip
    module = spelled("\n".join([*lines, f"%y = tanh(%{source})"]))
    fuse(module)
    assert operators(module) == [*wanted, "tanh"]
    Canonicalize().run(module, Context())
    text = print_module(module)
    assert not Fuse().run(module, Context()).changed
    assert not Canonicalize().run(module, Context()).changed
    assert print_module(module) == text
