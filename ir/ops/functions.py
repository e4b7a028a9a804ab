"""Elementary functions of a float tensor: exp, log, sqrt, trigonometry, erf, tests for NaN."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.ops.content import unary_content
from regraft.ir.ops.erf import erf as erf_fn
from regraft.ir.ops.pointwise import predicate, unary
from regraft.ir.ops.shapes import infer_predicate
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait

Array = np.ndarray[Any, Any]


def _size_sqrt(a: DimLike) -> int | None:
    if isinstance(a, int) and a >= 0 and isqrt(a) ** 2 == a:
        return isqrt(a)
    return None


exp = unary("exp", "ONNX Exp-13", np.exp)
log = unary("log", "ONNX Log-13", np.log)
sqrt = unary("sqrt", "ONNX Sqrt-13", np.sqrt, content=unary_content(_size_sqrt))
reciprocal = unary("reciprocal", "ONNX Reciprocal-13", lambda x: 1 / x)
erf = unary("erf", "ONNX Erf-13", erf_fn)

sin = unary("sin", "ONNX Sin-22", np.sin)
cos = unary("cos", "ONNX Cos-22", np.cos)
tan = unary("tan", "ONNX Tan-22", np.tan)
asin = unary("asin", "ONNX Asin-22", np.arcsin)
acos = unary("acos", "ONNX Acos-22", np.arccos)
atan = unary("atan", "ONNX Atan-22", np.arctan)
sinh = unary("sinh", "ONNX Sinh-22", np.sinh)
cosh = unary("cosh", "ONNX Cosh-22", np.cosh)
tanh = unary("tanh", "ONNX Tanh-13", np.tanh)
asinh = unary("asinh", "ONNX Asinh-22", np.arcsinh)
acosh = unary("acosh", "ONNX Acosh-22", np.arccosh)
atanh = unary("atanh", "ONNX Atanh-22", np.arctanh)

is_nan = predicate("is_nan", "ONNX IsNaN-20", np.isnan, num_operands=1)


def _eval_is_inf(c: Any, x: Array) -> Array:
    positive = np.isposinf(x) if c.attrs["positive"] else np.zeros(x.shape, bool)
    return positive | np.isneginf(x) if c.attrs["negative"] else positive


is_inf = OpSpec(
    name="is_inf",
    source="ONNX IsInf-20",
    operands=(Operand("x"),),
    # which infinities count
    attrs=(Attr("positive", AttrKind.BOOL, True), Attr("negative", AttrKind.BOOL, True)),
    traits=Trait.PURE | Trait.ELEMENTWISE,
    axes="*b -> *b",
    infer=infer_predicate,
    eval=_eval_is_inf,
)

OPS: tuple[OpSpec, ...] = (
    exp, log, sqrt, reciprocal, erf,
    sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, asinh, acosh, atanh,
    is_nan, is_inf,
)  # fmt: skip
