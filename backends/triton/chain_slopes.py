"""Derivatives of element-wise operators as expressions of a Triton kernel.

One template per operand: `{0}`, `{1}` are the operands, `{y}` the result, `{g}` its gradient. At a
kink they are what PyTorch's own gradients are.
"""

from __future__ import annotations

from collections.abc import Callable

from regraft.backends.triton.chain_forms import FLOATS, number_of
from regraft.ir.graph import Node
from regraft.ir.ops import activation, arithmetic, cast, functions, logical, rounding
from regraft.ir.opspec import OpSpec

Slopes = tuple[str | None, ...]

_BY_SIGN = "tl.where({0} > 0.0, {g}, tl.where({0} < 0.0, -{g}, 0.0))"
_SOFTPLUS = "(tl.maximum({0}, 0.0) + tl.log(1.0 + tl.exp(-tl.abs({0}))))"
# t + x * (1 - t^2) * sigmoid(x), where t = tanh(softplus(x))
_MISH = (
    f"{{g}} * (exact_tanh({_SOFTPLUS}) + {{0}} * tl.sigmoid({{0}})"
    f" * (1.0 - exact_tanh({_SOFTPLUS}) * exact_tanh({_SOFTPLUS})))"
)
_HARD_SWISH = "tl.where({0} <= -3.0, 0.0, tl.where({0} < 3.0, {g} * ({0} / 3.0 + 0.5), {g}))"

_PLAIN: dict[OpSpec, Slopes] = {
    arithmetic.add: ("{g}", "{g}"),
    arithmetic.sub: ("{g}", "-{g}"),
    arithmetic.mul: ("{g} * {1}", "{g} * {0}"),
    arithmetic.div: ("{g} / {1}", "-{g} * {y} / {1}"),
    arithmetic.neg: ("-{g}",),
    arithmetic.abs_: (_BY_SIGN,),
    functions.exp: ("{g} * {y}",),
    functions.log: ("{g} / {0}",),
    functions.sqrt: ("{g} / (2.0 * {y})",),
    functions.sin: ("{g} * tl.cos({0})",),
    functions.cos: ("-{g} * tl.sin({0})",),
    functions.erf: ("{g} * 1.1283791670955126 * tl.exp(-{0} * {0})",),
    functions.reciprocal: ("-{g} * {y} * {y}",),
    functions.tanh: ("{g} * (1.0 - {y} * {y})",),
    rounding.floor: (None,),
    rounding.ceil: (None,),
    activation.relu: ("tl.where({0} <= 0.0, 0.0, {g})",),
    activation.sigmoid: ("{g} * {y} * (1.0 - {y})",),
    activation.softplus: ("{g} * tl.sigmoid({0})",),
    activation.softsign: ("{g} / ((1.0 + tl.abs({0})) * (1.0 + tl.abs({0})))",),
    activation.mish: (_MISH,),
    activation.hard_swish: (_HARD_SWISH,),
    logical.where: (None, "tl.where({0}, {g}, 0.0)", "tl.where({0}, 0.0, {g})"),
    cast.identity: ("{g}",),
}


def _extremum(sign: str) -> Callable[[Node], Slopes]:
    """Returns slopes of a maximum (`>`) or minimum: of equal operands each has half."""

    def slopes(node: Node) -> Slopes:
        for idx in (0, 1):
            if number_of(node.inputs[idx]) is not None:  # `clamp` passes its bound
                other = f"tl.where({{{1 - idx}}} {sign}= {{{idx}}}, {{g}}, 0.0)"
                return (None, other) if idx == 0 else (other, None)
        half = "tl.where({0} == {1}, 0.5 * {g}, 0.0)"
        return (
            f"tl.where({{0}} {sign} {{1}}, {{g}}, {half})",
            f"tl.where({{1}} {sign} {{0}}, {{g}}, {half})",
        )

    return slopes


_POWERS = {
    2.0: "{g} * 2.0 * {0}",
    3.0: "{g} * 3.0 * {0} * {0}",
    0.5: "{g} * 0.5 / {y}",
    -0.5: "{g} * -0.5 * {y} / {0}",
    -1.0: "-{g} * {y} * {y}",
}


def _power(node: Node) -> Slopes | None:
    exponent = number_of(node.inputs[1])
    slope = None if exponent is None else _POWERS.get(exponent)
    return None if slope is None else (slope, None)


def _gelu(node: Node) -> Slopes:
    if node.attrs["tanh"]:
        # s + x * s * (1 - s) * z', where s = sigmoid(z(x)) is the gate
        inner = "1.5957691216057308 * (1.0 + 0.134145 * {0} * {0})"
        gate = "tanh_gate({0})"
        return (f"{{g}} * {gate} * (1.0 + {{0}} * (1.0 - {gate}) * {inner})",)
    density = "0.3989422804014327 * tl.exp(-0.5 * {0} * {0})"
    return (f"{{g}} * (normal_cdf({{0}}) + {{0}} * {density})",)


def _swish(node: Node) -> Slopes:
    alpha = float(node.attrs["alpha"])
    inner = "{0}" if alpha == 1 else f"({alpha!r} * {{0}})"
    gate = f"tl.sigmoid({inner})"
    return (f"{{g}} * {gate} * (1.0 + {inner} * (1.0 - {gate}))",)


def _leaky(node: Node) -> Slopes:
    return (f"tl.where({{0}} > 0.0, {{g}}, {float(node.attrs['alpha'])!r} * {{g}})",)


def _elu(node: Node) -> Slopes:
    alpha = float(node.attrs["alpha"])
    return (f"tl.where({{0}} > 0.0, {{g}}, {{g}} * {alpha!r} * tl.exp({{0}}))",)


def _hard_sigmoid(node: Node) -> Slopes:
    alpha, beta = float(node.attrs["alpha"]), float(node.attrs["beta"])
    line = f"{alpha!r} * {{0}} + {beta!r}"
    return (f"tl.where(({line} >= 0.0) & ({line} <= 1.0), {alpha!r} * {{g}}, 0.0)",)


def _clip(node: Node) -> Slopes:
    inside = []
    for name, sign in (("min", ">="), ("max", "<=")):
        static, value = node.attrs[name], node.operand(name)
        number = float(static) if static is not None else number_of(value)
        if number is not None and abs(number) != float("inf"):
            inside.append(f"({{0}} {sign} {number!r})")
    return (f"tl.where({' & '.join(inside)}, {{g}}, 0.0)",) if inside else ("{g}",)


def _cast(node: Node) -> Slopes:
    x = node.inputs[0]
    return ("{g}" if x is not None and x.dtype in FLOATS else None,)


_BY_ATTRIBUTES: dict[OpSpec, Callable[[Node], Slopes | None]] = {
    arithmetic.max_: _extremum(">"),
    arithmetic.min_: _extremum("<"),
    arithmetic.pow_: _power,
    activation.gelu: _gelu,
    activation.swish: _swish,
    activation.leaky_relu: _leaky,
    activation.elu: _elu,
    activation.hard_sigmoid: _hard_sigmoid,
    activation.clip: _clip,
    cast.cast: _cast,
}


def slopes_of(node: Node) -> Slopes | None:
    """Returns a template per operand of an element-wise node, None for one without a gradient.

    Returns:
        None where the node has no rule.
    """
    found = _PLAIN.get(node.op)
    if found is None:
        made = _BY_ATTRIBUTES.get(node.op)
        found = None if made is None else made(node)
    return found
