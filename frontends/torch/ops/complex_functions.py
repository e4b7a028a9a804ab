"""Functions and products of complex numbers, which the IR holds as pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.frontends.torch.call import CallImport, Importer, UnsupportedCallError
from regraft.frontends.torch.ops.arithmetic import angle_of
from regraft.frontends.torch.ops.complex_numbers import (
    joined_parts,
    pair_of,
    parts_of,
    product_of,
)
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import shape_of
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, functions, logical
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.reduce import reduce_l2
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.types import DType

_MAX_POWER = 16


def _size(c: CallImport, pair: Value) -> Value:
    """Returns the absolute values, with a last axis of size 1."""
    return c.b.op(reduce_l2, pair, axes=(len(shape_of(pair)) - 1,), keepdims=True)


def _angle(c: CallImport, pair: Value) -> Value:
    """Returns the angles, with a last axis of size 1."""
    real, imaginary = parts_of(c, pair)
    return angle_of(c, imaginary, real, pair.dtype or DType.F32)


def _from_polar(c: CallImport, size: Value, angle: Value) -> Value:
    real = c.b.op(arithmetic.mul, size, c.b.op(functions.cos, angle))
    return joined_parts(c, real, c.b.op(arithmetic.mul, size, c.b.op(functions.sin, angle)))


def _angles(c: CallImport) -> Value:
    angle = _angle(c, pair_of(c, c.value("self")))
    return c.b.op(squeeze, angle, axes=(len(shape_of(angle)) - 1,))


def _exp(c: CallImport) -> Value:
    real, imaginary = parts_of(c, pair_of(c, c.value("self")))
    return _from_polar(c, c.b.op(functions.exp, real), imaginary)


def _log(c: CallImport) -> Value:
    pair = pair_of(c, c.value("self"))
    return joined_parts(c, c.b.op(functions.log, _size(c, pair)), _angle(c, pair))


def _sqrt(c: CallImport) -> Value:
    pair = pair_of(c, c.value("self"))
    half = c.number(0.5, pair.dtype or DType.F32)
    return _from_polar(
        c, c.b.op(functions.sqrt, _size(c, pair)), c.b.op(arithmetic.mul, _angle(c, pair), half)
    )


def _power(c: CallImport) -> Value:
    exponent = c.args["exponent"]
    if not isinstance(exponent, int | float) or isinstance(exponent, bool):
        raise UnsupportedCallError("a power of complex numbers by a tensor")
    pair = pair_of(c, c.value("self"))
    if exponent == int(exponent) and 1 <= exponent <= _MAX_POWER:
        out = pair
        for _ in range(int(exponent) - 1):
            out = product_of(c, out, pair)
        return out
    dtype = pair.dtype or DType.F32
    size = c.b.op(arithmetic.pow_, _size(c, pair), c.number(float(exponent), dtype))
    turned = c.b.op(arithmetic.mul, _angle(c, pair), c.number(float(exponent), dtype))
    return _from_polar(c, size, turned)


def _reciprocal(c: CallImport) -> Value:
    pair = pair_of(c, c.value("self"))
    real, imaginary = parts_of(c, pair)
    size = _size(c, pair)
    square = c.b.op(arithmetic.mul, size, size)
    return joined_parts(
        c, c.b.op(arithmetic.div, real, square),
        c.b.op(arithmetic.div, c.b.op(arithmetic.neg, imaginary), square),
    )  # fmt: skip


def _sign(c: CallImport) -> Value:
    pair = pair_of(c, c.value("self"))
    size, zero = _size(c, pair), c.number(0.0, pair.dtype or DType.F32)
    unit = [
        c.b.op(logical.where, c.b.op(logical.equal, size, zero), zero,
               c.b.op(arithmetic.div, part, size))
        for part in parts_of(c, pair)
    ]  # fmt: skip
    return joined_parts(c, *unit)


def _where(c: CallImport) -> Value:
    condition = c.operand("condition", DType.BOOL)
    condition = c.b.op(unsqueeze, condition, axes=(condition.rank or 0,))
    chosen = []
    pairs = [parts_of(c, pair_of(c, _as_value(c, name))) for name in ("self", "other")]
    for a, b in zip(*pairs, strict=True):
        part = c.b.op(logical.where, condition, a, b)
        chosen.append(expanded(c, part, (*c.shape, 1)))
    return joined_parts(c, *chosen)


def _as_value(c: CallImport, name: str) -> Value:
    found = c.args[name]
    if isinstance(found, Value):
        return found
    raise UnsupportedCallError("a choice between a number and complex numbers")


def _matrices(first: str, second: str) -> Importer:
    """Returns an importer of matrix products: four of them, one for each two parts."""

    def run(c: CallImport) -> Value:
        (ar, ai), (br, bi) = (
            [c.b.op(squeeze, part, axes=(len(shape_of(part)) - 1,)) for part in _parts(c, name)]
            for name in (first, second)
        )
        real = c.b.op(arithmetic.sub, c.b.op(matmul, ar, br), c.b.op(matmul, ai, bi))
        imaginary = c.b.op(arithmetic.add, c.b.op(matmul, ar, bi), c.b.op(matmul, ai, br))
        axes = (len(shape_of(real)),)
        return joined_parts(
            c, c.b.op(unsqueeze, real, axes=axes), c.b.op(unsqueeze, imaginary, axes=axes)
        )

    return run


def _parts(c: CallImport, name: str) -> Any:
    return parts_of(c, pair_of(c, c.value(name)))


FUNCTIONS: Mapping[str, Importer] = {
    "aten.angle.default": _angles,
    "aten.exp.default": _exp,
    "aten.log.default": _log,
    "aten.sqrt.default": _sqrt,
    "aten.pow.Tensor_Scalar": _power,
    "aten.square.default": lambda c: product_of(
        c, pair_of(c, c.value("self")), pair_of(c, c.value("self"))
    ),
    "aten.reciprocal.default": _reciprocal,
    "aten.sgn.default": _sign,
    "aten.where.self": _where,
    "aten.mm.default": _matrices("self", "mat2"),
    "aten.bmm.default": _matrices("self", "mat2"),
    "aten.matmul.default": _matrices("self", "other"),
}
"""What an overload does with complex operands."""
