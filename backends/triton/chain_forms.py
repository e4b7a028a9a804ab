"""Element-wise operators as expressions of a Triton kernel and of PyTorch, for generated kernels.

Both are templates of the operands: `{0}`, `{1}`. A kernel computes in f32; results are rounded
once, when they are stored. What a jump may follow from (comparisons, `floor`) sees its operands
rounded to their element type, as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.ops import activation, arithmetic, cast, functions, logical, rounding
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import DType
from regraft.ir.weights import Role

FLOATS = {DType.F32: "tl.float32", DType.F16: "tl.float16", DType.BF16: "tl.bfloat16"}
TORCH_FLOATS = {
    DType.F32: "torch.float32",
    DType.F16: "torch.float16",
    DType.BF16: "torch.bfloat16",
}
WHOLE = frozenset({DType.I64, DType.I32, DType.I16, DType.I8, DType.U8})


@dataclass(frozen=True, slots=True)
class Form:
    """How an operator is written.

    Args:
        kernel: Expression of Triton.
        torch: Expression of PyTorch.
        flops: Operations per element, a special function being ten.
        needs: Functions of the kernels that the first expression calls.
    """

    kernel: str
    torch: str
    flops: int = 1
    needs: tuple[str, ...] = ()


_SPECIAL = 10
# of `tl.maximum` and `tl.minimum`, which drop NaN otherwise
_KEEPS_NAN = "propagate_nan=tl.PropagateNan.ALL"
_F = "torch.nn.functional"
_SOFTPLUS = "(tl.maximum({0}, 0.0) + tl.log(1.0 + tl.exp(-tl.abs({0}))))"


def _infix(sign: str) -> Form:
    return Form(f"{{0}} {sign} {{1}}", f"{{0}} {sign} {{1}}")


def _named(name: str, flops: int = _SPECIAL) -> Form:
    return Form(f"tl.{name}({{0}})", f"torch.{name}({{0}})", flops)


_PLAIN: dict[OpSpec, Form] = {
    arithmetic.add: _infix("+"),
    arithmetic.sub: _infix("-"),
    arithmetic.mul: _infix("*"),
    arithmetic.div: Form("{0} / {1}", "{0} / {1}", 4),
    arithmetic.neg: Form("-{0}", "-{0}"),
    arithmetic.abs_: _named("abs", 1),
    functions.exp: _named("exp"),
    functions.log: _named("log"),
    functions.sqrt: _named("sqrt"),
    functions.sin: _named("sin"),
    functions.cos: _named("cos"),
    functions.erf: _named("erf"),
    functions.reciprocal: Form("1.0 / {0}", "torch.reciprocal({0})", 4),
    functions.tanh: Form("exact_tanh({0})", "torch.tanh({0})", 2 * _SPECIAL, ("exact_tanh",)),
    functions.is_nan: Form("{0} != {0}", "torch.isnan({0})"),
    rounding.floor: _named("floor", 1),
    rounding.ceil: _named("ceil", 1),
    activation.relu: Form("tl.where({0} < 0.0, 0.0, {0})", "torch.relu({0})"),
    activation.sigmoid: _named("sigmoid"),
    activation.softplus: Form(_SOFTPLUS, f"{_F}.softplus({{0}})", 2 * _SPECIAL),
    activation.softsign: Form("{0} / (1.0 + tl.abs({0}))", f"{_F}.softsign({{0}})", 5),
    activation.mish: Form(
        f"{{0}} * exact_tanh({_SOFTPLUS})", f"{_F}.mish({{0}})", 4 * _SPECIAL, ("exact_tanh",)
    ),
    activation.hard_swish: Form(
        "{0} * tl.minimum(tl.maximum({0} / 6.0 + 0.5, 0.0), 1.0)", f"{_F}.hardswish({{0}})", 5
    ),
    logical.logical_and: _infix("&"),
    logical.logical_or: _infix("|"),
    logical.logical_xor: _infix("^"),
    logical.logical_not: Form("{0} == 0", "~{0}"),
    logical.equal: _infix("=="),
    logical.less: _infix("<"),
    logical.less_or_equal: _infix("<="),
    logical.greater: _infix(">"),
    logical.greater_or_equal: _infix(">="),
    logical.where: Form("tl.where({0}, {1}, {2})", "torch.where({0}, {1}, {2})"),
    cast.identity: Form("{0}", "{0}", 0),
}


def _number_text(number: float) -> str:
    return repr(number) if np.isfinite(number) else f'float("{number}")'


def _extremum(name: str, bound: str) -> Callable[[Node], Form | None]:
    def form(node: Node) -> Form:
        kernel = f"tl.{name}({{0}}, {{1}}, {_KEEPS_NAN})"
        for idx, other in ((0, 1), (1, 0)):
            if number_of(node.inputs[idx]) is not None:
                return Form(kernel, f"{{{other}}}.clamp({bound}={{{idx}}})")
        return Form(kernel, f"torch.{name}({{0}}, {{1}})")

    return form


_POWERS = {
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    0.5: "tl.sqrt({0})",
    -0.5: "1.0 / tl.sqrt({0})",
    -1.0: "1.0 / {0}",
}


def _power(node: Node) -> Form | None:
    exponent = number_of(node.inputs[1])
    kernel = None if exponent is None else _POWERS.get(exponent)
    return None if kernel is None else Form(kernel, "{0} ** {1}", 2)


def _gelu(node: Node) -> Form:
    if node.attrs["tanh"]:
        kernel, way = "tanh_gate", ', approximate="tanh"'
    else:
        kernel, way = "normal_cdf", ""
    return Form(f"{{0}} * {kernel}({{0}})", f"{_F}.gelu({{0}}{way})", 2 * _SPECIAL, (kernel,))


def _swish(node: Node) -> Form:
    alpha = float(node.attrs["alpha"])
    if alpha == 1:
        return Form("{0} * tl.sigmoid({0})", f"{_F}.silu({{0}})", _SPECIAL)
    text = f"{{0}} * {{module}}.sigmoid({alpha!r} * {{0}})"
    return Form(text.replace("{module}", "tl"), text.replace("{module}", "torch"), _SPECIAL)


def _leaky(node: Node) -> Form:
    alpha = float(node.attrs["alpha"])
    return Form(
        f"tl.where({{0}} >= 0.0, {{0}}, {alpha!r} * {{0}})", f"{_F}.leaky_relu({{0}}, {alpha!r})", 2
    )


def _elu(node: Node) -> Form:
    alpha = float(node.attrs["alpha"])
    kernel = f"tl.where({{0}} >= 0.0, {{0}}, {alpha!r} * (tl.exp({{0}}) - 1.0))"
    return Form(kernel, f"{_F}.elu({{0}}, {alpha!r})", _SPECIAL)


def _hard_sigmoid(node: Node) -> Form:
    alpha, beta = float(node.attrs["alpha"]), float(node.attrs["beta"])
    line = f"{alpha!r} * {{0}} + {beta!r}"
    kernel = f"tl.maximum({line}, 0.0, {_KEEPS_NAN})"
    kernel = f"tl.minimum({kernel}, 1.0, {_KEEPS_NAN})"
    return Form(kernel, f"({line}).clamp(0, 1)", 3)


def _clip(node: Node) -> Form | None:
    kernel, bounds = "{0}", []
    for name, function in (("min", "maximum"), ("max", "minimum")):
        static, value = node.attrs[name], node.operand(name)
        number = float(static) if static is not None else number_of(value)
        if number is None and value is not None:
            return None
        if number is not None:
            kernel = f"tl.{function}({kernel}, {_number_text(number)}, {_KEEPS_NAN})"
            bounds.append(f"{name}={_number_text(number)}")
    return Form(kernel, f"{{0}}.clamp({', '.join(bounds)})", 2) if bounds else None


def _cast(node: Node) -> Form | None:
    x, to = node.inputs[0], node.attrs["to"]
    if x is None or to not in FLOATS:
        return None
    torch_text = f"{{0}}.to({TORCH_FLOATS[to]})"
    if x.dtype in FLOATS:
        # a value is f32 in the kernel: rounded where the model rounds it
        kernel = "{0}" if to is DType.F32 else f"{{0}}.to({FLOATS[to]}).to(tl.float32)"
        return Form(kernel, torch_text, 1)
    return Form("{0}.to(tl.float32)", torch_text, 1)


_BY_ATTRIBUTES: dict[OpSpec, Callable[[Node], Form | None]] = {
    arithmetic.max_: _extremum("maximum", "min"),
    arithmetic.min_: _extremum("minimum", "max"),
    arithmetic.pow_: _power,
    activation.gelu: _gelu,
    activation.swish: _swish,
    activation.leaky_relu: _leaky,
    activation.elu: _elu,
    activation.hard_sigmoid: _hard_sigmoid,
    activation.clip: _clip,
    cast.cast: _cast,
}


def form_of(node: Node) -> Form | None:
    """Returns how an element-wise node is written; None where a kernel cannot compute it."""
    output = node.output if len(node.outputs) == 1 else None
    if output is None or (output.dtype not in FLOATS and output.dtype is not DType.BOOL):
        return None
    of_whole = [value for value in node.inputs if value is not None and value.dtype in WHOLE]
    if of_whole and node.op is not cast.cast and Trait.DISCRETE not in node.op.traits:
        return None
    known = (DType.BOOL, *FLOATS, *WHOLE)
    if any(value is not None and value.dtype not in known for value in node.inputs):
        return None
    found = _PLAIN.get(node.op)
    if found is None:
        made = _BY_ATTRIBUTES.get(node.op)
        found = None if made is None else made(node)
    return found


def operands_of(node: Node) -> list[Value]:
    """Returns the operands that an expression of a node names, in order."""
    kept = node.inputs[:1] if node.op in (activation.clip, cast.cast) else node.inputs
    return [value for value in kept if value is not None]


def is_rounded_first(node: Node) -> bool:
    """Whether a node jumps where its operands change a little."""
    return Trait.DISCRETE in node.op.traits


def number_of(value: Value | None) -> float | None:
    """Returns a one-element constant that no training changes as a number, else None."""
    producer = None if value is None else value.producer
    if value is None or producer is None:
        return None
    if "name" in producer.attrs and producer.graph is not None:
        weights = producer.graph.scope.weights
        stored = weights.resolve(producer.attrs["name"]) if producer.op.name == "weight" else None
        if stored is not None and weights.role(stored) is not Role.CONST:
            return None
    array = constant_of(value, 16)
    if array is None or array.size != 1 or value.dtype not in (*FLOATS, *WHOLE, DType.BOOL):
        return None
    return float(array.reshape(-1)[0])


def number_text(value: Value) -> str | None:
    """Returns the text of a one-element constant in both languages, None for other values."""
    number = number_of(value)
    return None if number is None else _number_text(number)
