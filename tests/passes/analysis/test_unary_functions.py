"""Every spelling of an activation function is told by what it computes, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.module import Module
from regraft.passes.analysis.unary_functions import Activation, ActivationFinder
from tests.passes.analysis.spelled import spelled


def find(module: Module) -> list[Activation]:
    return list(ActivationFinder().find(module.graph))


def only(module: Module) -> tuple[str, dict[str, float | bool]]:
    (found,) = find(module)
    assert found.input is module.graph.inputs[0]
    assert found.output is module.graph.outputs[0]
    return found.function.name, dict(found.function.attrs)


ERF_GELU = {
    "x * (1 + erf(x / sqrt 2)) / 2": """
        %a = div(%x, 1.4142135)
        %b = erf(%a)
        %c = add(%b, 1)
        %d = mul(%x, %c)
        %y = mul(%d, 0.5)""",
    "half first": """
        %h = mul(%x, 0.5)
        %a = mul(%x, 0.70710678)
        %b = erf(%a)
        %c = add(1, %b)
        %y = mul(%h, %c)""",
    "half inside": """
        %a = mul(%x, 0.70710678)
        %b = erf(%a)
        %c = mul(%b, 0.5)
        %d = add(%c, 0.5)
        %y = mul(%d, %x)""",
    "one minus erf of the negative": """
        %a = neg(%x)
        %b = div(%a, 1.4142135)
        %c = erf(%b)
        %d = sub(1, %c)
        %e = mul(%x, %d)
        %y = div(%e, 2)""",
}

TANH_GELU = {
    "pow 3": """
        %a = pow(%x, 3)
        %b = mul(%a, 0.044715)
        %c = add(%x, %b)
        %d = mul(%c, 0.7978846)
        %e = tanh(%d)
        %f = add(%e, 1)
        %g = mul(%x, 0.5)
        %y = mul(%g, %f)""",
    "x * x * x": """
        %a = mul(%x, %x)
        %b = mul(%a, %x)
        %c = mul(%b, 0.044715)
        %d = add(%x, %c)
        %e = mul(%d, 0.7978845608)
        %f = tanh(%e)
        %g = add(1, %f)
        %h = mul(%x, %g)
        %y = mul(0.5, %h)""",
    "factored": """
        %a = mul(%x, %x)
        %b = mul(%a, 0.0356774081)
        %c = add(%b, 0.7978845608)
        %d = mul(%c, %x)
        %e = tanh(%d)
        %f = mul(%e, 0.5)
        %g = add(%f, 0.5)
        %y = mul(%g, %x)""",
    "sigmoid of the double": """
        %a = pow(%x, 3)
        %b = mul(%a, 0.044715)
        %c = add(%x, %b)
        %d = mul(%c, 1.5957691)
        %e = sigmoid(%d)
        %y = mul(%x, %e)""",
}

HARD_SWISH = {
    "relu6": """
        %a = add(%x, 3)
        %b = clip(%a) {min = 0.0, max = 6.0}
        %c = mul(%x, %b)
        %y = div(%c, 6)""",
    "divided first": """
        %a = add(%x, 3)
        %b = clip(%a) {min = 0.0, max = 6.0}
        %c = div(%b, 6)
        %y = mul(%c, %x)""",
    "hard_sigmoid": """
        %a = hard_sigmoid(%x) {alpha = 0.16666667, beta = 0.5}
        %y = mul(%x, %a)""",
    "min and max": """
        %a = add(%x, 3)
        %b = max(%a, 0)
        %c = min(%b, 6)
        %d = mul(%c, 0.16666667)
        %y = mul(%x, %d)""",
    "relu and min": """
        %a = add(3, %x)
        %b = relu(%a)
        %c = min(%b, 6)
        %d = mul(%x, %c)
        %y = mul(%d, 0.16666667)""",
}

OTHERS = [
    ("silu", {"alpha": 1.0}, "%a = sigmoid(%x)\n%y = mul(%x, %a)"),
    ("silu", {"alpha": 1.0}, "%a = neg(%x)\n%b = exp(%a)\n%c = add(%b, 1)\n%y = div(%x, %c)"),
    ("quick_gelu", {"alpha": 1.702}, "%a = mul(%x, 1.702)\n%b = sigmoid(%a)\n%y = mul(%x, %b)"),
    ("swish", {"alpha": 0.5}, "%a = mul(%x, 0.5)\n%b = sigmoid(%a)\n%y = mul(%x, %b)"),
    ("sigmoid", {}, "%a = neg(%x)\n%b = exp(%a)\n%c = add(%b, 1)\n%y = div(1, %c)"),
    ("sigmoid", {}, "%a = neg(%x)\n%b = exp(%a)\n%c = add(%b, 1)\n%y = reciprocal(%c)"),
    ("sigmoid", {}, "%a = mul(%x, 0.5)\n%b = tanh(%a)\n%c = add(%b, 1)\n%y = mul(%c, 0.5)"),
    (
        "tanh", {},
        """%a = exp(%x)
        %b = neg(%x)
        %c = exp(%b)
        %d = sub(%a, %c)
        %e = add(%a, %c)
        %y = div(%d, %e)""",
    ),
    ("tanh", {}, "%a = mul(%x, 2)\n%b = sigmoid(%a)\n%c = mul(%b, 2)\n%y = sub(%c, 1)"),
    ("softplus", {}, "%a = exp(%x)\n%b = add(%a, 1)\n%y = log(%b)"),
    ("mish", {}, "%a = softplus(%x)\n%b = tanh(%a)\n%y = mul(%x, %b)"),
    ("mish", {}, "%a = exp(%x)\n%b = add(%a, 1)\n%c = log(%b)\n%d = tanh(%c)\n%y = mul(%d, %x)"),
    ("relu", {}, "%a = abs(%x)\n%b = add(%x, %a)\n%y = mul(%b, 0.5)"),
    ("relu6", {"min": 0.0, "max": 6.0}, "%a = relu(%x)\n%y = min(%a, 6)"),
    ("clip", {"min": -1.5, "max": 2.0}, "%a = max(%x, -1.5)\n%y = min(%a, 2)"),
    ("leaky_relu", {"alpha": 0.1}, "%a = mul(%x, 0.1)\n%y = max(%x, %a)"),
    (
        "leaky_relu", {"alpha": 0.2},
        "%a = relu(%x)\n%b = neg(%x)\n%c = relu(%b)\n%d = mul(%c, 0.2)\n%y = sub(%a, %d)",
    ),
    (
        "elu", {"alpha": 1.0},
        "%a = exp(%x)\n%b = sub(%a, 1)\n%c = greater(%x, 0)\n%y = where(%c, %x, %b)",
    ),
    ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5},
     "%a = mul(%x, 0.2)\n%b = add(%a, 0.5)\n%y = clip(%b) {min = 0.0, max = 1.0}"),
    ("softsign", {}, "%a = abs(%x)\n%b = add(%a, 1)\n%y = div(%x, %b)"),
    ("relu2", {}, "%a = relu(%x)\n%y = mul(%a, %a)"),
    ("relu2", {}, "%a = relu(%x)\n%y = pow(%a, 2)"),
    ("relu2", {"scale": 0.5, "shift": -0.25},
     "%a = relu(%x)\n%b = mul(%a, %a)\n%c = mul(%b, 0.5)\n%y = add(%c, -0.25)"),
]  # fmt: skip


@pytest.mark.parametrize("body", ERF_GELU.values(), ids=ERF_GELU)
def test_erf_gelu(body: str) -> None:
    assert only(spelled(body)) == ("gelu", {"tanh": False})


@pytest.mark.parametrize("body", TANH_GELU.values(), ids=TANH_GELU)
def test_tanh_gelu(body: str) -> None:
    assert only(spelled(body)) == ("gelu_tanh", {"tanh": True})


@pytest.mark.parametrize("body", HARD_SWISH.values(), ids=HARD_SWISH)
def test_hard_swish(body: str) -> None:
    assert only(spelled(body)) == ("hard_swish", {})


@pytest.mark.parametrize(("name", "attrs", "body"), OTHERS)
def test_others(name: str, attrs: dict[str, float], body: str) -> None:
    found, solved = only(spelled(body))
    assert found == name
    assert solved == attrs


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("body", [*ERF_GELU.values(), *TANH_GELU.values()])
def test_constants_of_16_bits_leave_the_two_gelus_apart(body: str, dtype: str) -> None:
    """bf16 holds sqrt(2) to 3 digits: the better hypothesis wins."""
    wanted = "gelu" if "erf" in body else "gelu_tanh"
    assert only(spelled(body, dtype=dtype))[0] == wanted


def test_wider_interior_is_looked_through() -> None:
    body = """
        %w = cast(%x) {to = f32}
        %a = sigmoid(%w)
        %b = mul(%w, %a)
        %y = cast(%b) {to = f16}"""
    assert only(spelled(body, dtype="f16"))[0] == "silu"


def test_narrower_interior_is_not() -> None:
    body = """
        %w = cast(%x) {to = f16}
        %a = sigmoid(%w)
        %b = mul(%w, %a)
        %y = cast(%b) {to = f32}"""
    (found,) = find(spelled(body))
    assert found.input.name == "w"
    assert found.output.name == "b"


NOT_ACTIVATIONS = {
    "gelu of another root": """
        %a = div(%x, 1.5)
        %b = erf(%a)
        %c = add(%b, 1)
        %d = mul(%x, %c)
        %y = mul(%d, 0.5)""",
    "a part of gelu": "%a = div(%x, 1.4142135)\n%b = erf(%a)\n%y = add(%b, 1)",
    "scaled silu": "%a = sigmoid(%x)\n%b = mul(%x, %a)\n%y = mul(%b, 1.1)",
    "scaled relu": "%a = relu(%x)\n%y = mul(%a, 2)",  # a selu whose alpha is 0
    "line": "%a = mul(%x, 2)\n%y = add(%a, 1)",
    "square": "%y = mul(%x, %x)",
    "cubic": "%a = mul(%x, %x)\n%b = mul(%a, %x)\n%y = sub(%b, %x)",
    "clipped far out": """
        %a = clip(%x) {max = 50000.0}
        %b = exp(%a)
        %y = log(%b)""",
}


@pytest.mark.parametrize("body", NOT_ACTIVATIONS.values(), ids=NOT_ACTIVATIONS)
def test_what_computes_something_else_is_not_reported(body: str) -> None:
    module = spelled(body)
    assert all(found.output is not module.graph.outputs[0] for found in find(module))


def test_interior_used_elsewhere_is_left_alone() -> None:
    """The sigmoid is an activation of its own; the product with x is not raised."""
    module = spelled("%a = sigmoid(%x)\n%b = mul(%x, %a)\n%y = add(%b, %a)")
    assert [found.function.name for found in find(module)] == ["sigmoid"]


def test_parameter_vectors_are_no_numbers() -> None:
    """A learned slope per channel may be uniform today; it stays a parameter."""
    module = spelled(
        "%a = mul(%x, %w)\n%b = sigmoid(%a)\n%y = mul(%x, %b)", weights={"w": "f32[16]"}
    )
    assert [found.function.name for found in find(module)] == ["sigmoid"]


def test_broadcasting_constants_change_the_shape() -> None:
    module = spelled(
        "%a = neg(%x)\n%b = exp(%a)\n%c = add(%b, %w)\n%y = div(1, %c)",
        shape="1, 4, 8",
        weights={"w": "f32[2, 1, 1]"},
    )
    assert find(module) == []


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0.125, 4.0, width=32), order=st.booleans(), negated=st.booleans())
def test_swish_of_any_slope(alpha: float, order: bool, negated: bool) -> None:
    number = float(str(np.float32(alpha)))
    lines = [f"%a = mul(%x, {-number if negated else number})"]
    if negated:
        lines += ["%e = exp(%a)", "%s = add(%e, 1)", "%y = div(%x, %s)"]
    else:
        lines += ["%s = sigmoid(%a)", "%y = mul(%s, %x)" if order else "%y = mul(%x, %s)"]
    name, attrs = only(spelled("\n".join(lines)))
    assert name in ("swish", "silu", "quick_gelu")
    # the probes solve it in f64; the number is stored in f32
    assert attrs["alpha"] == pytest.approx(number, rel=1e-7)
