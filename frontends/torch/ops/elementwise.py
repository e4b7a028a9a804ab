"""Importers of element-wise functions of one tensor."""

from __future__ import annotations

from math import log as ln
from math import pi

import ml_dtypes
import numpy as np

from regraft.frontends.torch.call import CallImport, Import, Importer, row
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, functions, logical, rounding
from regraft.ir.ops.fill import constant_of_shape
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType


def apply(spec: OpSpec) -> Importer:
    """Returns an importer of an operator on `self` in the element type of the result."""
    return lambda c: c.b.op(spec, c.operand("self"))


def keep(c: CallImport) -> Value:
    """Imports a call that returns its first tensor as it is."""
    return c.value("self")


def _rounding(spec: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        return c.b.op(spec, x) if c.dtype.is_float else x  # integers are whole

    return run


def _round_decimals(c: CallImport) -> Value:
    if not c.dtype.is_float:
        return c.value("self")
    factor = c.number(10.0 ** c.attr("decimals"), c.dtype)
    scaled = c.b.op(arithmetic.mul, c.value("self"), factor)
    return c.b.op(arithmetic.div, c.b.op(rounding.round_, scaled), factor)


def truncated(c: CallImport, x: Value) -> Value:
    """Returns a float tensor rounded towards zero."""
    whole = c.b.op(rounding.floor, c.b.op(arithmetic.abs_, x))
    return c.b.op(arithmetic.mul, c.b.op(arithmetic.sign, x), whole)


def _trunc(c: CallImport) -> Value:
    return truncated(c, c.value("self")) if c.dtype.is_float else c.value("self")


def _frac(c: CallImport) -> Value:
    x = c.value("self")
    return c.b.op(arithmetic.sub, x, truncated(c, x))


def _rsqrt(c: CallImport) -> Value:
    return c.b.op(functions.reciprocal, c.b.op(functions.sqrt, c.operand("self")))


def _square(c: CallImport) -> Value:
    x = c.value("self")
    return c.b.op(arithmetic.mul, x, x)


def _scaled(spec: OpSpec | None, factor: float) -> Importer:
    """Returns an importer of `factor * spec(self)`, or of `factor * self`."""

    def run(c: CallImport) -> Value:
        x = c.operand("self")
        x = x if spec is None else c.b.op(spec, x)
        return c.b.op(arithmetic.mul, x, c.number(factor, c.dtype))

    return run


def _exp2(c: CallImport) -> Value:
    return c.b.op(arithmetic.pow_, c.number(2.0, c.dtype), c.operand("self"))


def expm1(c: CallImport, x: Value) -> Value:
    """Returns exp(x) - 1 without cancellation near 0: tanh(x / 2) * (exp(x) + 1)."""
    dtype = x.dtype or c.dtype
    half = c.b.op(functions.tanh, c.b.op(arithmetic.mul, x, c.number(0.5, dtype)))
    total = c.b.op(arithmetic.add, c.b.op(functions.exp, x), c.number(1.0, dtype))
    return c.b.op(arithmetic.mul, half, total)


def log1p(c: CallImport, x: Value) -> Value:
    """Returns log(1 + x); below 1/2 as 2 atanh(x / (2 + x)), which does not cancel."""
    dtype = x.dtype or c.dtype
    shifted = c.b.op(arithmetic.add, x, c.number(2.0, dtype))
    near = c.b.op(functions.atanh, c.b.op(arithmetic.div, x, shifted))
    near = c.b.op(arithmetic.mul, near, c.number(2.0, dtype))
    far = c.b.op(functions.log, c.b.op(arithmetic.add, x, c.number(1.0, dtype)))
    is_near = c.b.op(logical.less, c.b.op(arithmetic.abs_, x), c.number(0.5, dtype))
    return c.b.op(logical.where, is_near, near, far)


def _erfc(c: CallImport) -> Value:
    return c.b.op(arithmetic.sub, c.number(1.0, c.dtype), c.b.op(functions.erf, c.operand("self")))


def _logit(c: CallImport) -> Value:
    x = c.operand("self")
    eps = c.attr("eps")
    if eps is not None:
        x = c.b.op(arithmetic.max_, x, c.number(eps, c.dtype))
        x = c.b.op(arithmetic.min_, x, c.number(1 - eps, c.dtype))
    rest = c.b.op(arithmetic.sub, c.number(1.0, c.dtype), x)
    return c.b.op(functions.log, c.b.op(arithmetic.div, x, rest))


def _truth(spec: OpSpec, **attrs: bool) -> Importer:
    """Returns an importer of a test that only floats can pass."""

    def run(c: CallImport) -> Value:
        x = c.value("self")
        if x.dtype is not None and not x.dtype.is_float:
            return c.b.op(constant_of_shape, shape=c.shape, value=np.array([False]))
        return c.b.op(spec, x, **attrs)

    return run


def _is_finite(c: CallImport) -> Value:
    x = c.value("self")
    if x.dtype is not None and not x.dtype.is_float:
        return c.b.op(constant_of_shape, shape=c.shape, value=np.array([True]))
    either = c.b.op(logical.logical_or, c.b.op(functions.is_nan, x), c.b.op(functions.is_inf, x))
    return c.b.op(logical.logical_not, either)


def _nan_to_num(c: CallImport) -> Value:
    x = c.value("self")
    if not c.dtype.is_float:
        return x
    largest = float(ml_dtypes.finfo(c.dtype.numpy).max)
    tests: tuple[tuple[str, float, OpSpec, dict[str, bool]], ...] = (
        ("nan", 0.0, functions.is_nan, {}),
        ("posinf", largest, functions.is_inf, {"negative": False}),
        ("neginf", -largest, functions.is_inf, {"positive": False}),
    )
    for name, default, test, attrs in tests:
        given = c.attr(name)
        value = c.number(default if given is None else given, c.dtype)
        x = c.b.op(logical.where, c.b.op(test, x, **attrs), value, x)
    return x


def _sinc(c: CallImport) -> Value:
    x = c.operand("self")
    scaled = c.b.op(arithmetic.mul, x, c.number(pi, c.dtype))
    quotient = c.b.op(arithmetic.div, c.b.op(functions.sin, scaled), scaled)
    at_zero = c.b.op(logical.equal, x, c.number(0.0, c.dtype))
    return c.b.op(logical.where, at_zero, c.number(1.0, c.dtype), quotient)


def _abs(c: CallImport) -> Value:
    x = c.value("self")
    unsigned = x.dtype is DType.BOOL or str(x.dtype).startswith("u")
    return x if unsigned else c.b.op(arithmetic.abs_, x)


def _sign(c: CallImport) -> Value:
    return c.value("self") if c.dtype is DType.BOOL else c.b.op(arithmetic.sign, c.value("self"))


def _angle(c: CallImport) -> Value:
    """The angle of real numbers: half a turn for negative ones."""
    x = c.operand("self")
    is_negative = c.b.op(logical.less, x, c.number(0.0, c.dtype))
    angle = c.b.op(logical.where, is_negative, c.number(pi, c.dtype), c.number(0.0, c.dtype))
    return c.b.op(logical.where, c.b.op(functions.is_nan, x), x, angle)


_FUNCTIONS: dict[str, OpSpec] = {
    "exp": functions.exp, "log": functions.log, "sqrt": functions.sqrt, "erf": functions.erf,
    "special_erf": functions.erf, "reciprocal": functions.reciprocal,
    "sin": functions.sin, "cos": functions.cos, "tan": functions.tan,
    "asin": functions.asin, "acos": functions.acos, "atan": functions.atan,
    "arcsin": functions.asin, "arccos": functions.acos, "arctan": functions.atan,
    "sinh": functions.sinh, "cosh": functions.cosh, "tanh": functions.tanh,
    "arcsinh": functions.asinh, "arccosh": functions.acosh, "arctanh": functions.atanh,
    "asinh": functions.asinh, "acosh": functions.acosh, "atanh": functions.atanh,
    "neg": arithmetic.neg, "negative": arithmetic.neg,
}  # fmt: skip

IMPORTS: tuple[Import, ...] = (
    *(row(apply(spec), f"aten.{name}.default") for name, spec in _FUNCTIONS.items()),
    row(_abs, "aten.abs.default", "aten.absolute.default"),
    row(_sign, "aten.sign.default", "aten.sgn.default"),
    row(keep, "aten.positive.default"),
    row(_angle, "aten.angle.default"),
    row(_rounding(rounding.floor), "aten.floor.default"),
    row(_rounding(rounding.ceil), "aten.ceil.default"),
    row(_rounding(rounding.round_), "aten.round.default"),
    row(_round_decimals, "aten.round.decimals"),
    row(_trunc, "aten.trunc.default", "aten.fix.default"),
    row(_frac, "aten.frac.default"),
    row(_rsqrt, "aten.rsqrt.default"),
    row(_square, "aten.square.default"),
    row(_scaled(functions.log, 1 / ln(2)), "aten.log2.default"),
    row(_scaled(functions.log, 1 / ln(10)), "aten.log10.default"),
    row(_scaled(None, pi / 180), "aten.deg2rad.default"),
    row(_scaled(None, 180 / pi), "aten.rad2deg.default"),
    row(_exp2, "aten.exp2.default", "aten.special_exp2.default"),
    row(lambda c: expm1(c, c.operand("self")), "aten.expm1.default", "aten.special_expm1.default"),
    row(lambda c: log1p(c, c.operand("self")), "aten.log1p.default", "aten.special_log1p.default"),
    row(_erfc, "aten.erfc.default", "aten.special_erfc.default"),
    row(_logit, "aten.logit.default", "aten.special_logit.default"),
    row(_sinc, "aten.sinc.default", "aten.special_sinc.default"),
    row(_truth(functions.is_nan), "aten.isnan.default"),
    row(_truth(functions.is_inf), "aten.isinf.default"),
    row(_truth(functions.is_inf, negative=False), "aten.isposinf.default"),
    row(_truth(functions.is_inf, positive=False), "aten.isneginf.default"),
    row(_is_finite, "aten.isfinite.default"),
    row(_nan_to_num, "aten.nan_to_num.default"),
)
