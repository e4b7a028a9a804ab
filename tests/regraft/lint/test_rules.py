"""Every lint rule finds its trap, at the right place, and says nothing of a model without it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from regraft.frontends.onnx import load_onnx
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.lint import RULES, Severity, fused, lint, quantized

CLEAN = "symbol B\ngraph(%x : f32[B, 4]) {\n%y = tanh(%x)\nreturn %y\n}\n"

W = "weight @w : f32[4, 4] role=param = random(1)"

TRAPS = {
    "unknown-operator": (
        (
            'graph(%x : f32[4]) {\n%y = opaque(%x) {dialect = "onnx:acme", op_type = "Twice"}'
            " : f32[4]\nreturn %y\n}\n"
        ),
        "acme.Twice at `y`",
    ),
    "unnamed-size": (
        "symbol x_0\ngraph(%x : f32[x_0, 4]) {\n%y = tanh(%x)\nreturn %y\n}\n",
        "axis 0 of input `x` (`x_0`)",
    ),
    "unused-input": (
        "graph(%x : f32[4], %z : f32[4]) {\n%y = tanh(%x)\nreturn %y\n}\n",
        "input `z` is read by nothing",
    ),
    "trivial-output": (
        "graph(%x : f32[4]) {\n%y = tanh(%x)\nreturn %y, %y as %again\n}\n",
        "output `again` is the same as `y`",
    ),
    "weight-not-finite": (
        (
            "weight @n : f32[4] role=param = splat nan\n"
            "graph(%x : f32[4]) {\n%n = weight @n\n%y = add(%x, %n)\nreturn %y\n}\n"
        ),
        "weight `n`",
    ),
    "duplicated-weight": (
        (
            "weight @a : f32[20000] role=param = splat 2\n"
            "weight @b : f32[20000] role=param = splat 2\n"
            "graph(%x : f32[20000]) {\n%a = weight @a\n%b = weight @b\n%s = add(%x, %a)\n"
            "%y = mul(%s, %b)\nreturn %y\n}\n"
        ),
        "weight `b` equals `a`",
    ),
    "f64-island": (
        (
            "graph(%x : f32[4]) {\n%d = cast(%x) {to = f64}\n%e = exp(%d)\n"
            "%y = cast(%e) {to = f32}\nreturn %y\n}\n"
        ),
        "cast `d`",
    ),
    "large-int64": (
        "graph(%x : i64[4, 4]) {\n%y = mul(%x, %x)\nreturn %y\n}\n",
        "mul `y`",
    ),
    "f16-on-cpu": (
        "graph(%x : f16[4, 4]) {\n%y = matmul(%x, %x)\nreturn %y\n}\n",
        "matmul `y`",
    ),
    "bf16-on-cpu": (
        "graph(%x : bf16[4, 4]) {\n%y = tanh(%x)\nreturn %y\n}\n",
        "tanh `y`",
    ),
    "infinite-mask": (
        "graph(%x : f16[4]) {\n%m = literal f16[] -inf\n%y = add(%x, %m)\nreturn %y\n}\n",
        "add `y`",
    ),
    "half-statistics": (
        "graph(%x : f16[4]) {\n%y = softmax(%x)\nreturn %y\n}\n",
        "softmax `y`",
    ),
    "unfolded-norm": (
        (
            f"{W}\nweight @s : f32[4] role=buffer = splat 1\n"
            "graph(%x : f32[2, 4]) {\n%w = weight @w\n%s = weight @s\n%m = matmul(%x, %w)\n"
            "%y = batch_norm(%m, %s, %s, %s, %s)\nreturn %y\n}\n"
        ),
        "batch_norm `y`",
    ),
}


def found(module: Module, target: str = "ort-cpu") -> dict[str, tuple[str, ...]]:
    return {item.rule.name: item.places for item in lint(module, target)}


@pytest.mark.parametrize("name", TRAPS)
def test_trap_is_found_at_its_place(name: str) -> None:
    text, place = TRAPS[name]
    places = found(parse_module(text))
    assert places[name][0] == place


def test_clean_model_has_no_findings() -> None:
    assert found(parse_module(CLEAN)) == {}


@pytest.mark.parametrize(
    ("name", "opset", "ir_version"),
    [("opset-too-new", 27, 13), ("ir-version-too-new", 20, 14)],
)
def test_version_is_too_new_for_the_runtime_only(name: str, opset: int, ir_version: int) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Tanh", ["x"], ["y"])], "g",
        [info("x", TensorProto.FLOAT, ["B", 4])], [info("y", TensorProto.FLOAT, ["B", 4])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    module = load_onnx(model)
    assert name in found(module)
    assert name not in found(module, "onnx")


def test_rule_of_a_target_is_silent_for_others() -> None:
    text, _ = TRAPS["f16-on-cpu"]
    assert "f16-on-cpu" not in found(parse_module(text), "ort-cuda")


def test_every_rule_is_tested_and_says_what_to_do() -> None:
    versions = {"opset-too-new", "ir-version-too-new"}
    of_quantized = {rule.name for rule in (*quantized.RULES, *fused.RULES)}
    assert {rule.name for rule in RULES} == {*TRAPS, *versions, *of_quantized}
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.why.endswith(".") and rule.fix for rule in RULES)


def test_errors_come_first_and_all_places_are_counted() -> None:
    lines = "\n".join(f"%a{i} = tanh(%x)" for i in range(30))
    outs = ", ".join(f"%a{i}" for i in range(30))
    text = f"graph(%x : bf16[4, 4], %z : f32[1]) {{\n{lines}\nreturn {outs}\n}}\n"
    first, second = lint(parse_module(text), "ort-cpu")
    assert (first.rule.severity, first.count, len(first.places)) == (Severity.ERROR, 30, 20)
    assert second.rule.name == "unused-input"


def test_nan_in_half_precision_weight_is_found() -> None:
    array = np.array([1, np.nan], np.float16)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2])],
        [onnx.numpy_helper.from_array(array, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert found(load_onnx(model))["weight-not-finite"] == ("weight `w`",)
