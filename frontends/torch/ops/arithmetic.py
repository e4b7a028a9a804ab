"""Importers of arithmetic on two or three tensors, with promotion and scale factors."""

from __future__ import annotations

from math import isfinite, isinf
from typing import Any

import numpy as np

from regraft.frontends.torch.call import (
    CallImport,
    Import,
    Imported,
    Importer,
    UnsupportedCallError,
    row,
)
from regraft.frontends.torch.ops.elementwise import truncated
from regraft.frontends.torch.ops.promotion import promoted
from regraft.ir.dims import Dim
from regraft.ir.graph import Value
from regraft.ir.ops import activation, arithmetic, functions, logical, rounding
from regraft.ir.ops.content import at_least
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

_HALF = frozenset({DType.F16, DType.BF16})
_BOOL_FORMS = {arithmetic.add: logical.logical_or, arithmetic.mul: logical.logical_and}


def _leaves_range(number: Any, dtype: DType) -> bool:
    """Returns whether a number turns into infinity or loses its digits in a half type."""
    if dtype not in _HALF or not isinstance(number, float) or number == 0 or isinf(number):
        return False
    with np.errstate(over="ignore"):
        rounded = float(np.asarray(number).astype(dtype.numpy))
    return not isfinite(rounded) or abs(rounded - number) > abs(number) / 128


def _binary(c: CallImport, spec: OpSpec, first: Any, second: Any) -> Value:
    """Returns `spec(first, second)` of tensors or numbers in the element type of the result.

    PyTorch keeps numbers in f32 beside half tensors; that matters where the half type cannot hold
    the number.
    """
    dtype = c.dtype
    if dtype is DType.BOOL and spec in _BOOL_FORMS:
        spec = _BOOL_FORMS[spec]
    wide = DType.F32 if _leaves_range(first, dtype) or _leaves_range(second, dtype) else dtype
    operands = [
        c.cast(item, wide) if isinstance(item, Value) else c.number(item, wide)
        for item in (first, second)
    ]
    return c.cast(c.b.op(spec, *operands), dtype)


def arithmetic_of(spec: OpSpec, first: str = "self", second: str = "other") -> Importer:
    """Returns an importer of a binary operator on two arguments."""
    return lambda c: _binary(c, spec, c.args[first], c.args[second])


def scaled(c: CallImport, item: Any, factor: Any) -> Any:
    """Returns a tensor or number times a number argument."""
    if not isinstance(item, Value):
        return item * factor
    return item if factor == 1 else c.b.op(arithmetic.mul, *_same(c, item, factor))


def _same(c: CallImport, item: Value, factor: Any) -> tuple[Value, Value]:
    return c.cast(item, c.dtype), c.number(factor, c.dtype)


def _with_alpha(spec: OpSpec, *, swapped: bool = False) -> Importer:
    names = ("other", "self") if swapped else ("self", "other")

    def run(c: CallImport) -> Value:
        first, second = (c.args[name] for name in names)
        return _binary(c, spec, first, scaled(c, second, c.attr("alpha")))

    return run


def _floor_divide(c: CallImport) -> Value:
    a, b = c.operand("self"), c.operand("other")
    if c.dtype.is_float:
        return _floor_floats(c, a, b)
    if _is_not_negative(a) and _is_not_negative(b):
        return c.b.op(arithmetic.div, a, b)
    # (a - (a mod b)) / b is exact, and the remainder has the sign of b
    rest = c.b.op(arithmetic.sub, a, c.b.op(arithmetic.mod, a, b))
    return c.b.op(arithmetic.div, rest, b)


def _floor_floats(c: CallImport, a: Value, b: Value) -> Value:
    """Returns floor(a / b) as if the quotient were exact; a / b where b is 0."""
    rest = c.b.op(arithmetic.sub, a, c.b.op(arithmetic.mod, a, b))
    whole = c.b.op(rounding.round_, c.b.op(arithmetic.div, rest, b))
    number = c.args["other"]
    if not isinstance(number, Value) and number != 0:
        return whole
    is_zero = c.b.op(logical.equal, b, c.number(0, c.dtype))
    return c.b.op(logical.where, is_zero, c.b.op(arithmetic.div, a, b), whole)


def _is_not_negative(value: Value) -> bool:
    if str(value.dtype).startswith("u"):
        return True
    content = value.content
    if content is None:
        return False
    return all(
        at_least(item, 0) for item in (content if isinstance(content, tuple) else (content,))
    )


def _divide_mode(c: CallImport) -> Value:
    mode = c.attr("rounding_mode")
    if mode == "floor":
        return _floor_divide(c)
    quotient = _binary(c, arithmetic.div, c.args["self"], c.args["other"])
    if mode == "trunc" and c.dtype.is_float:
        return truncated(c, quotient)
    return quotient


def _remainder(*, fmod: bool) -> Importer:
    return lambda c: c.b.op(arithmetic.mod, c.operand("self"), c.operand("other"), fmod=fmod)


def _pow(c: CallImport) -> Value:
    exponent = c.args["exponent"]
    base = c.args["self"]
    if not isinstance(exponent, Value) and isinstance(base, Value):
        x = c.cast(base, c.dtype)
        if exponent == 1:
            return x
        if isinstance(exponent, Dim) or c.dtype is DType.BOOL:
            return c.b.op(arithmetic.pow_, x, c.number(exponent, c.dtype))
        if exponent == -0.5:
            return c.b.op(functions.reciprocal, c.b.op(functions.sqrt, x))
    return _binary(c, arithmetic.pow_, base, exponent)


def _extremum(spec: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        if c.dtype is DType.BOOL:
            spec_of_bools = logical.logical_or if spec is arithmetic.max_ else logical.logical_and
            return c.b.op(spec_of_bools, c.value("self"), c.value("other"))
        return _binary(c, spec, c.args["self"], c.args["other"])

    return run


def _ignore_nan(spec: OpSpec) -> Importer:
    """Returns an importer of `fmax` or `fmin`: a NaN gives way to the other operand."""

    def run(c: CallImport) -> Value:
        a, b = c.operand("self"), c.operand("other")
        if not c.dtype.is_float:
            return c.b.op(spec, a, b)
        first = c.b.op(logical.where, c.b.op(functions.is_nan, a), b, a)
        second = c.b.op(logical.where, c.b.op(functions.is_nan, b), a, b)
        return c.b.op(spec, first, second)

    return run


_EXACT_FLOAT = 1 << 53


def _clamp(c: CallImport) -> Value:
    x = c.operand("self")
    bounds = {name: c.attr(name) for name in ("min", "max") if c.attr(name) is not None}
    plain = all(
        isinstance(bound, int | float) and abs(bound) < _EXACT_FLOAT for bound in bounds.values()
    )
    if plain:
        return c.b.op(activation.clip, x, **{k: float(v) for k, v in bounds.items()})
    for name, spec in (("min", arithmetic.max_), ("max", arithmetic.min_)):
        if name in bounds:
            x = c.b.op(spec, x, c.operand(name))
    return x


def _addc(spec: OpSpec) -> Importer:
    """Returns an importer of `self + value * spec(tensor1, tensor2)`."""

    def run(c: CallImport) -> Value:
        pair = c.b.op(spec, c.operand("tensor1"), c.operand("tensor2"))
        return c.b.op(arithmetic.add, c.operand("self"), scaled(c, pair, c.attr("value")))

    return run


def _lerp(c: CallImport) -> Value:
    start, end = c.operand("self"), c.operand("end")
    step = c.b.op(arithmetic.mul, c.operand("weight"), c.b.op(arithmetic.sub, end, start))
    return c.b.op(arithmetic.add, start, step)


def _atan2(c: CallImport) -> Value:
    return angle_of(c, c.operand("self"), c.operand("other"), c.dtype)


def angle_of(c: CallImport, y: Value, x: Value, dtype: DType) -> Value:
    """Returns the angle of points `(x, y)`, between -pi and pi."""
    zero = c.number(0.0, dtype)
    angle = c.b.op(functions.atan, c.b.op(arithmetic.div, y, x))
    below = c.b.op(logical.less, y, zero)
    turn = c.b.op(logical.where, below, c.number(-np.pi, dtype), c.number(np.pi, dtype))
    left = c.b.op(logical.where, c.b.op(logical.less, x, zero),
                  c.b.op(arithmetic.add, angle, turn), angle)  # fmt: skip
    # on the axis x = 0 the quotient is infinite, or NaN at the origin, where the angle is 0
    on_axis = c.b.op(arithmetic.mul, c.b.op(arithmetic.sign, y), c.number(np.pi / 2, dtype))
    return c.b.op(logical.where, c.b.op(logical.equal, x, zero), on_axis, left)


def _hypot(c: CallImport) -> Value:
    a, b = (c.b.op(arithmetic.abs_, c.operand(name)) for name in ("self", "other"))
    large, small = c.b.op(arithmetic.max_, a, b), c.b.op(arithmetic.min_, a, b)
    tiny = c.number(float(np.finfo(np.float32).tiny), c.dtype)
    ratio = c.b.op(arithmetic.div, small, c.b.op(arithmetic.max_, large, tiny))
    one = c.number(1.0, c.dtype)
    root = c.b.op(arithmetic.add, c.b.op(arithmetic.mul, ratio, ratio), one)
    return c.b.op(arithmetic.mul, large, c.b.op(functions.sqrt, root))


def _log_add_exp(c: CallImport) -> Value:
    a, b = c.operand("self"), c.operand("other")
    gap = c.b.op(arithmetic.neg, c.b.op(arithmetic.abs_, c.b.op(arithmetic.sub, a, b)))
    rest = c.b.op(activation.softplus, gap)
    return c.b.op(arithmetic.add, c.b.op(arithmetic.max_, a, b), rest)


def _xlogy(c: CallImport) -> Value:
    x, y = c.operand("self"), c.operand("other")
    zero = c.number(0.0, c.dtype)
    product = c.b.op(arithmetic.mul, x, c.b.op(functions.log, y))
    result = c.b.op(logical.where, c.b.op(logical.equal, x, zero), zero, product)
    return c.b.op(logical.where, c.b.op(functions.is_nan, y), y, result)


def _true_divide(c: CallImport) -> Value:
    return _binary(c, arithmetic.div, c.args["self"], c.args["other"])


def _rsub(c: CallImport) -> Imported:
    if c.dtype is DType.BOOL:
        raise UnsupportedCallError("PyTorch does not subtract truth values")
    return _with_alpha(arithmetic.sub, swapped=True)(c)


def _heaviside(c: CallImport) -> Value:
    x, at_zero = promoted(c, "self", "values")
    zero, one = c.number(0, c.dtype), c.number(1, c.dtype)
    step = c.b.op(logical.where, c.b.op(logical.greater, x, zero), one, zero)
    return c.b.op(logical.where, c.b.op(logical.equal, x, zero), at_zero, step)


def _ldexp(c: CallImport) -> Value:
    scale = c.b.op(arithmetic.pow_, c.number(2.0, c.dtype), c.operand("other"))
    return c.b.op(arithmetic.mul, c.operand("self"), scale)


def _both(name: str, *more: str) -> tuple[str, ...]:
    return tuple(f"aten.{each}.{kind}" for each in (name, *more) for kind in ("Tensor", "Scalar"))


IMPORTS: tuple[Import, ...] = (
    row(_with_alpha(arithmetic.add), *_both("add")),
    row(_with_alpha(arithmetic.sub), *_both("sub", "subtract")),
    row(_rsub, *_both("rsub")),
    row(arithmetic_of(arithmetic.mul), *_both("mul", "multiply")),
    row(_true_divide, *_both("div", "divide", "true_divide")),
    row(
        _divide_mode, "aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.divide.Tensor_mode",
        "aten.divide.Scalar_mode",
    ),
    row(_floor_divide, "aten.floor_divide.default", "aten.floor_divide.Scalar",
        "aten.floor_divide.Tensor"),
    row(_remainder(fmod=False), *_both("remainder"), "aten.remainder.Scalar_Tensor"),
    row(_remainder(fmod=True), *_both("fmod")),
    row(_pow, "aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar",
        "aten.pow.Tensor",
        "aten.float_power.Tensor_Scalar",
        "aten.float_power.Tensor_Tensor",
        "aten.float_power.Scalar",
        "aten.float_power.Tensor",),
    row(_extremum(arithmetic.max_), "aten.maximum.default", "aten.max.other"),
    row(_extremum(arithmetic.min_), "aten.minimum.default", "aten.min.other"),
    row(_ignore_nan(arithmetic.max_), "aten.fmax.default"),
    row(_ignore_nan(arithmetic.min_), "aten.fmin.default"),
    row(
        _clamp, "aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default", "aten.clip.Tensor",
        "aten.clamp_min.default", "aten.clamp_min.Tensor", "aten.clamp_max.default",
        "aten.clamp_max.Tensor",
    ),
    row(_addc(arithmetic.mul), "aten.addcmul.default"),
    row(_addc(arithmetic.div), "aten.addcdiv.default"),
    row(_lerp, "aten.lerp.Scalar", "aten.lerp.Tensor"),
    row(_atan2, "aten.atan2.default", "aten.arctan2.default"),
    row(_hypot, "aten.hypot.default"),
    row(_log_add_exp, "aten.logaddexp.default"),
    row(_xlogy, "aten.xlogy.Tensor", "aten.special_xlogy.default",
        "aten.xlogy.Scalar_Other",
        "aten.xlogy.Scalar_Self",
       ),
    row(_heaviside, "aten.heaviside.default"),
    row(_ldexp, "aten.ldexp.Tensor"),
)  # fmt: skip
