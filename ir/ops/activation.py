"""Activation functions: rectifiers, sigmoids, gates, clipping."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from regraft.ir.graph import Content, Node
from regraft.ir.ops.content import map_content, size_max, size_min
from regraft.ir.ops.erf import erf
from regraft.ir.ops.pointwise import unary
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait

Array = np.ndarray[Any, Any]

# ONNX stores these f32 neighbours of the paper's constants (Klambauer et al. 2017)
SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875
_POINTWISE = Trait.PURE | Trait.ELEMENTWISE


def _sigmoid(x: Array) -> Any:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array) -> Any:
    return np.logaddexp(x, x.dtype.type(0))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(alpha * x + beta, 0, 1)


def _selu(x: Array, alpha: float, gamma: float) -> Any:
    return gamma * np.where(x > 0, x, alpha * np.expm1(x))


relu = unary("relu", "ONNX Relu-14", lambda x: np.maximum(x, 0))
leaky_relu = unary(
    "leaky_relu", "ONNX LeakyRelu-16", lambda x, alpha: np.where(x < 0, alpha * x, x), alpha=0.01
)
thresholded_relu = unary(
    "thresholded_relu", "ONNX ThresholdedRelu-22",
    lambda x, alpha: np.where(x > alpha, x, 0), alpha=1.0,
)  # fmt: skip
elu = unary(
    "elu", "ONNX Elu-22", lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)), alpha=1.0
)
selu = unary("selu", "ONNX Selu-22", _selu, alpha=SELU_ALPHA, gamma=SELU_GAMMA)
celu = unary(
    "celu", "ONNX Celu-28",
    lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x / alpha)), alpha=1.0,
)  # fmt: skip
sigmoid = unary("sigmoid", "ONNX Sigmoid-13", _sigmoid)
hard_sigmoid = unary("hard_sigmoid", "ONNX HardSigmoid-22", _hard_sigmoid, alpha=0.2, beta=0.5)
hard_swish = unary("hard_swish", "ONNX HardSwish-22", lambda x: x * np.clip(x / 6 + 0.5, 0, 1))
swish = unary("swish", "ONNX Swish-24", lambda x, alpha: x * _sigmoid(alpha * x), alpha=1.0)
mish = unary("mish", "ONNX Mish-22", lambda x: x * np.tanh(_softplus(x)))
softplus = unary("softplus", "ONNX Softplus-22", _softplus)
softsign = unary("softsign", "ONNX Softsign-22", lambda x: x / (1 + np.abs(x)))

prelu = OpSpec(
    name="prelu",
    source="ONNX PRelu-16",
    operands=(Operand("x"), Operand("slope")),  # the slope broadcasts to x, never x to the slope
    traits=_POINTWISE,
    axes="*b, *b -> *b",
    infer=infer_same,
    eval=lambda c, x, slope: np.where(x < 0, slope * x, x),
)


def _eval_gelu(c: Any, x: Array) -> Any:
    if c.attrs["tanh"]:
        return 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x * sqrt(0.5)))


gelu = OpSpec(
    name="gelu",
    source="ONNX Gelu-20",
    operands=(Operand("x"),),
    attrs=(Attr("tanh", AttrKind.BOOL, False),),  # the tanh approximation instead of erf
    traits=_POINTWISE,
    axes="*b -> *b",
    infer=infer_same,
    eval=_eval_gelu,
)


def _eval_shrink(c: Any, x: Array) -> Array:
    lambd, bias = c.attrs["lambd"], c.attrs["bias"]
    below, above = x < -lambd, x > lambd
    # bias and lambd are floats for integers too: the result is truncated to the type of x
    return np.where(below, x + bias, np.where(above, x - bias, 0)).astype(x.dtype)


shrink = OpSpec(
    name="shrink",
    source="ONNX Shrink-9",
    operands=(Operand("x"),),
    attrs=(Attr("lambd", AttrKind.FLOAT, 0.5), Attr("bias", AttrKind.FLOAT, 0.0)),
    traits=_POINTWISE,
    axes="*b -> *b",
    infer=infer_same,
    eval=_eval_shrink,
)


def _eval_clip(c: Any, x: Array, lo: Array | None, hi: Array | None) -> Array:
    for bound, extremum in ((c.param("min", lo), np.maximum), (c.param("max", hi), np.minimum)):
        if bound is not None:
            x = extremum(x, np.asarray(bound).astype(x.dtype).reshape(()))
    return x


def _content_clip(node: Node) -> Content | None:
    x = node.inputs[0]
    if x is None or x.content is None:
        return None
    content: Content | None = x.content
    for name, extremum in (("min", size_max), ("max", size_min)):
        bound = node.static(name)
        if bound is None:
            if node.operand(name) is not None:
                return None
            continue
        if isinstance(bound, float) and not bound.is_integer():
            return None
        limit = int(bound) if isinstance(bound, float) else bound
        if content is not None:
            content = map_content(node.output.dtype, extremum, content, limit)
    return content


clip = OpSpec(
    name="clip",
    source="ONNX Clip-13",
    # a minimum above the maximum gives the maximum everywhere
    operands=(
        Operand("x"),
        Operand("min", optional=True, either=AttrKind.FLOAT),
        Operand("max", optional=True, either=AttrKind.FLOAT),
    ),
    traits=_POINTWISE,
    axes="*b, ., . -> *b",
    infer=infer_same,
    content=_content_clip,
    eval=_eval_clip,
)

OPS: tuple[OpSpec, ...] = (
    relu, leaky_relu, thresholded_relu, prelu, elu, selu, celu,
    sigmoid, hard_sigmoid, hard_swish, swish, mish, gelu, softplus, softsign, shrink, clip,
)  # fmt: skip
