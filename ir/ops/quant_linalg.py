"""Products of quantized operands: matmul_integer, qlinear_matmul, conv_integer, qlinear_conv.

Contracted axes are fixed in the rules unless both zero points are absent: a stored 0 otherwise
means another number than 0, so that zeroing a position is not dropping it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node, Value
from regraft.ir.ops.conv import conv, convolve
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.quant import compute_dtype, round_saturate
from regraft.ir.ops.windows import WINDOW_ATTRS, spatial_labels, windows_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]

_CONV_ATTRS = (*WINDOW_ATTRS, Attr("groups", AttrKind.INT, 1))


def _infer_as(like: OpSpec, node: Node, dtype: DType | None) -> TensorType:
    """Result type of the float operator `like`, whose first operands these are, as a `dtype`."""
    type_ = None if like.infer is None else like.infer(node)
    return TensorType(dtype, type_.shape if isinstance(type_, TensorType) else None)


def _term(value: Value | None, vector: str, stack: str) -> str:
    """Axis term of a scale or zero point: one value, one per row or column, or a stack of them."""
    shape = None if value is None else value.shape
    if not shape:
        return "" if value is None or shape is not None else "."
    if len(shape) == 1:
        return "1" if shape[0] == 1 else vector
    return stack


def _matmul_term(value: Value | None, side: str) -> str:
    return _term(value, side, "*b m? 1" if side == "m" else "*b 1 n?")


def _matmul_axes(
    node: Node, a_params: list[Value | None], b_params: list[Value | None]
) -> str | None:
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None or a.rank is None or b.rank is None or min(a.rank, b.rank) < 2:
        return None
    k = "~k" if a_params[-1] is None and b_params[-1] is None else "k!"
    terms = [_matmul_term(value, "m") for value in a_params]
    terms += [_matmul_term(value, "n") for value in b_params]
    return f"*b m {k}, *b {k} n, {', '.join(terms)}"


def _centered(x: Array, zero_point: Array | None, rows: bool = False) -> Array:
    """Returns f64 of x minus its zero point: exact, and its products are sums of exact integers."""
    wide = x.astype(np.float64)
    if zero_point is None:
        return wide
    zero = zero_point.astype(np.float64)
    return wide - (zero[:, None] if rows and zero.ndim == 1 and zero.size > 1 else zero)


def _wrap(acc: Array) -> Array:
    return acc.astype(np.int64).astype(np.int32)


def _axes_matmul_integer(node: Node) -> str | None:
    left = _matmul_axes(node, [node.inputs[2]], [node.inputs[3]])
    return None if left is None else f"{left} -> *b m n"


def _eval_matmul_integer(
    c: EvalContext, a: Array, b: Array, a_zero: Array | None, b_zero: Array | None
) -> Array:
    return _wrap(np.matmul(_centered(a, a_zero, rows=True), _centered(b, b_zero)))


matmul_integer = OpSpec(
    name="matmul_integer",
    source="ONNX MatMulInteger-10",
    operands=(
        Operand("a"),
        Operand("b"),
        Operand("a_zero_point", optional=True),
        Operand("b_zero_point", optional=True),
    ),
    traits=Trait.PURE | Trait.RAW,
    axes=_axes_matmul_integer,
    infer=lambda node: _infer_as(matmul, node, DType.I32),
    eval=_eval_matmul_integer,
)


def _axes_qlinear_matmul(node: Node) -> str | None:
    left = _matmul_axes(node, list(node.inputs[2:4]), list(node.inputs[4:6]))
    if left is None:
        return None
    result = ", ".join(_matmul_term(value, "m") for value in node.inputs[6:8])
    return f"{left}, {result} -> *b m n"


def _requantize(c: EvalContext, acc: Array, factor: Array, zero_point: Array) -> Array:
    wide = compute_dtype(c)
    return round_saturate(acc.astype(wide) * factor.astype(wide), zero_point, c.dtype() or DType.U8)


def _result_dtype(node: Node) -> DType | None:
    zero_point = node.inputs[-1]
    return None if zero_point is None else zero_point.dtype


def _column(scale: Array) -> Array:
    return scale[:, None] if scale.ndim == 1 and scale.size > 1 else scale


def _eval_qlinear_matmul(
    c: EvalContext, a: Array, b: Array, a_scale: Array, a_zero: Array,
    b_scale: Array, b_zero: Array, y_scale: Array, y_zero: Array,
) -> Array:  # fmt: skip
    acc = np.matmul(_centered(a, a_zero, rows=True), _centered(b, b_zero))
    wide = compute_dtype(c)
    scales = [s.astype(wide) for s in (_column(a_scale), b_scale, _column(y_scale))]
    return _requantize(c, acc, scales[0] * scales[1] / scales[2], _column(y_zero))


qlinear_matmul = OpSpec(
    name="qlinear_matmul",
    source="ONNX QLinearMatMul-21",
    operands=(
        Operand("a"),
        Operand("b"),
        Operand("a_scale"),
        Operand("a_zero_point"),
        Operand("b_scale"),
        Operand("b_zero_point"),
        Operand("y_scale"),
        Operand("y_zero_point"),
    ),
    traits=Trait.PURE | Trait.RAW | Trait.DISCRETE,
    axes=_axes_qlinear_matmul,
    infer=lambda node: _infer_as(matmul, node, _result_dtype(node)),
    eval=_eval_qlinear_matmul,
)


def _conv_axes(node: Node, terms: str, exact: bool) -> str | None:
    """Rule of a convolution whose operands after the weight have these terms (`{o}`: channels)."""
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None:
        return None
    rank = x.rank if x.rank is not None else weight.rank
    if rank is None:
        return None
    s, k, t = (spatial_labels(prefix, rank - 2) for prefix in "skt")
    i = "~i" if exact else "i!"
    if node.attrs["groups"] == 1:
        return f"n {i} {s}, o {i} {k}, {terms.format(o='o')} -> n o {t}"
    return f"n (g {i}) {s}, (g o*) {i} {k}, {terms.format(o='(g o*)')} -> n (g o*) {t}"


def _axes_conv_integer(node: Node) -> str | None:
    x_zero, w_zero = node.inputs[2:4]
    terms = f"{_term(x_zero, '.', '.')}, {_term(w_zero, '{o}', '.')}"
    return _conv_axes(node, terms, exact=x_zero is None and w_zero is None)


def _per_channel(param: Array | None, rank: int) -> Array | None:
    if param is None or param.size == 1:
        return None if param is None else param.reshape(())
    return param.reshape((-1, *(1,) * (rank - 1)))


def _accumulate(
    c: EvalContext, x: Array, weight: Array, x_zero: Array | None, w_zero: Array | None
) -> Array:
    """Returns the exact convolution of the centered operands; pads add the number 0."""
    windows = windows_of(c.attrs, weight.shape[2:])
    left = _centered(x, None if x_zero is None else x_zero.reshape(()))
    right = _centered(weight, _per_channel(w_zero, weight.ndim))
    return convolve(left, right, windows, c.attrs["groups"])


def _eval_conv_integer(
    c: EvalContext, x: Array, weight: Array, x_zero: Array | None, w_zero: Array | None
) -> Array:
    return _wrap(_accumulate(c, x, weight, x_zero, w_zero))


conv_integer = OpSpec(
    name="conv_integer",
    source="ONNX ConvInteger-10",
    operands=(
        Operand("x"),
        Operand("weight"),
        Operand("x_zero_point", optional=True),
        Operand("weight_zero_point", optional=True),
    ),
    attrs=_CONV_ATTRS,
    traits=Trait.PURE | Trait.RAW,
    axes=_axes_conv_integer,
    counts={"groups": "g"},
    infer=lambda node: _infer_as(conv, node, DType.I32),
    eval=_eval_conv_integer,
)


def _axes_qlinear_conv(node: Node) -> str | None:
    bias, x_scale, x_zero, w_scale, w_zero, y_scale, y_zero = node.inputs[2:9]
    terms = [
        _term(bias, "{o}", "."),
        *(_term(value, ".", ".") for value in (x_scale, x_zero)),
        *(_term(value, "{o}", ".") for value in (w_scale, w_zero)),
        *(_term(value, ".", ".") for value in (y_scale, y_zero)),
    ]
    return _conv_axes(node, ", ".join(terms), exact=False)


def _eval_qlinear_conv(
    c: EvalContext, x: Array, weight: Array, bias: Array | None, x_scale: Array, x_zero: Array,
    w_scale: Array, w_zero: Array, y_scale: Array, y_zero: Array,
) -> Array:  # fmt: skip
    acc = _accumulate(c, x, weight, x_zero, w_zero)
    channels = (-1, *(1,) * (acc.ndim - 2))
    if bias is not None:
        acc = acc + bias.astype(np.float64).reshape(channels)
    wide = compute_dtype(c)
    x_factor, w_factor, y_factor = (s.astype(wide).reshape(-1) for s in (x_scale, w_scale, y_scale))
    factor = x_factor * w_factor / y_factor
    factor = factor.reshape(channels if factor.size > 1 else ())
    return _requantize(c, acc, factor, y_zero.reshape(()))


qlinear_conv = OpSpec(
    name="qlinear_conv",
    source="ONNX QLinearConv-10",
    operands=(
        Operand("x"),
        Operand("weight"),
        Operand("bias", optional=True),
        Operand("x_scale"),
        Operand("x_zero_point"),
        Operand("weight_scale"),
        Operand("weight_zero_point"),
        Operand("y_scale"),
        Operand("y_zero_point"),
    ),
    attrs=_CONV_ATTRS,
    traits=Trait.PURE | Trait.RAW | Trait.DISCRETE,
    axes=_axes_qlinear_conv,
    counts={"groups": "g"},
    infer=lambda node: _infer_as(conv, node, _result_dtype(node)),
    eval=_eval_qlinear_conv,
)

OPS: tuple[OpSpec, ...] = (matmul_integer, qlinear_matmul, conv_integer, qlinear_conv)
