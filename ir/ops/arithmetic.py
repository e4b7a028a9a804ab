"""Arithmetic: add, sub, mul, div, mod, pow, min, max, neg, abs, sign.

Integers wrap on overflow; integer division truncates, and by zero is undefined.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, exact_quotient, floordiv
from regraft.ir.dims import mod as dim_mod
from regraft.ir.graph import Content, Node
from regraft.ir.ops.content import (
    at_least,
    binary_content,
    pairwise,
    size_abs,
    size_max,
    size_min,
    size_sign,
    unary_content,
)
from regraft.ir.ops.pointwise import binary, unary
from regraft.ir.ops.shapes import broadcast, infer_broadcast
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

add = binary(
    "add", "ONNX Add-14", np.add,
    traits=Trait.COMMUTATIVE, content=binary_content(lambda a, b: a + b),
)  # fmt: skip
sub = binary("sub", "ONNX Sub-14", np.subtract, content=binary_content(lambda a, b: a - b))
mul = binary(
    "mul", "ONNX Mul-14", np.multiply,
    traits=Trait.COMMUTATIVE, content=binary_content(lambda a, b: a * b),
)  # fmt: skip


def truncated_quotient(a: Array, b: Array) -> Array:
    """Returns a / b, for integers rounded toward zero."""
    if a.dtype.kind not in "iu":
        return np.asarray(np.divide(a, b))
    quotient: Array = a // b
    if a.dtype.kind == "u":
        return quotient
    inexact = (quotient * b != a) & ((a < 0) != (b < 0))
    return np.asarray(quotient + inexact.astype(a.dtype))


def _content_div(node: Node) -> Content | None:
    dtype = node.output.dtype
    whole = dtype is not None and dtype.is_integer

    def divide(a: DimLike, b: DimLike) -> DimLike | None:
        if isinstance(a, int) and isinstance(b, int):
            if b == 0 or (a % b and not whole):
                return None
            size = abs(a) // abs(b)
            return size if (a < 0) == (b < 0) else -size
        quotient = exact_quotient(a, b) if at_least(b, 1) else None
        if quotient is not None:
            return quotient
        # truncation is floor for operands that are not negative
        return floordiv(a, b) if whole and at_least(a, 0) and at_least(b, 1) else None

    return pairwise(node, divide)


div = binary("div", "ONNX Div-14", truncated_quotient, content=_content_div)


def _content_mod(node: Node) -> Content | None:
    fmod = node.attrs["fmod"]

    def remainder(a: DimLike, b: DimLike) -> DimLike | None:
        if isinstance(a, int) and isinstance(b, int):
            if b == 0:
                return None
            if not fmod:
                return a % b
            return abs(a) % abs(b) if a >= 0 else -(-a % abs(b))
        if not at_least(b, 1) or (fmod and not at_least(a, 0)):
            return None
        return dim_mod(a, b)

    return pairwise(node, remainder)


mod = OpSpec(
    name="mod",
    source="ONNX Mod-28",
    operands=(Operand("a"), Operand("b")),
    # fmod: the result has the sign of a (C's fmod), otherwise of b (floored division)
    attrs=(Attr("fmod", AttrKind.BOOL, False),),
    traits=Trait.PURE | Trait.ELEMENTWISE | Trait.DISCRETE,
    axes="*b, *b -> *b",
    infer=infer_broadcast,
    content=_content_mod,
    eval=lambda c, a, b: np.fmod(a, b) if c.attrs["fmod"] else np.mod(a, b),
)


def _infer_pow(node: Node) -> Type:
    base = node.inputs[0]
    shape = broadcast(node, *(value.shape for value in node.inputs if value is not None))
    return TensorType(None if base is None else base.dtype, shape)


def _eval_pow(c: Any, a: Array, b: Array) -> Any:
    integers = a.dtype.kind in "iu" and b.dtype.kind in "iu" and not (b < 0).any()
    if integers or (a.dtype.kind == "f" and b.dtype.kind == "f"):
        return np.power(a, b.astype(a.dtype))
    # mixed operands meet in f64; the result has the base's type
    return np.power(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)


pow_ = OpSpec(
    name="pow",
    source="ONNX Pow-15",
    operands=(Operand("a"), Operand("b")),
    traits=Trait.PURE | Trait.ELEMENTWISE,
    axes="*b, *b -> *b",
    infer=_infer_pow,
    eval=_eval_pow,
)

min_ = binary(
    "min", "ONNX Min-13", np.minimum,
    traits=Trait.COMMUTATIVE, content=binary_content(size_min),
)  # fmt: skip
max_ = binary(
    "max", "ONNX Max-13", np.maximum,
    traits=Trait.COMMUTATIVE, content=binary_content(size_max),
)  # fmt: skip

neg = unary("neg", "ONNX Neg-13", np.negative, content=unary_content(lambda a: -a))
abs_ = unary("abs", "ONNX Abs-13", np.abs, content=unary_content(size_abs))
sign = unary(
    "sign", "ONNX Sign-13", np.sign, traits=Trait.DISCRETE, content=unary_content(size_sign)
)

OPS: tuple[OpSpec, ...] = (add, sub, mul, div, mod, pow_, min_, max_, neg, abs_, sign)
