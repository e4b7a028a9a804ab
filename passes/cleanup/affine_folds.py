"""Folds of per-channel affine maps into the weights of a neighbour, computed in f64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, conv, linalg
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import Reject
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup.affine import Affine, float_info, role_of

Array = np.ndarray[Any, Any]

_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """New constants of a producer.

    Args:
        weight: Scaled weight, f64; None when the producer's own stays.
        bias: f64[C], or None when it is zero and the producer has none.
        attrs: Attributes of the producer that change.
    """

    weight: Array | None
    bias: Array | None
    attrs: dict[str, Any]


def _channels(affine: Affine, num: int) -> tuple[Array, Array]:
    return np.broadcast_to(affine.scale, (num,)), np.broadcast_to(affine.shift, (num,))


def _column(array: Array, rank: int, axis: int) -> Array:
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def _conv(node: Node, w: Array, bias: Array | None, affine: Affine) -> Folded | Reject:
    scale, shift = _channels(affine, w.shape[0])
    # s * (W x + b) + t = (s W) x + (s b + t), per output channel
    return Folded(w * _column(scale, w.ndim, 0), _bias(bias, scale, shift), {})


def _conv_transpose(node: Node, w: Array, bias: Array | None, affine: Affine) -> Folded | Reject:
    groups = node.attrs["groups"]
    scale, shift = _channels(affine, w.shape[1] * groups)
    # weight is [C, M / groups, …]: output channel g * (M / groups) + j belongs to inputs of group g
    grouped = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    factor = scale.reshape(groups, 1, w.shape[1], *(1,) * (w.ndim - 2))
    return Folded((grouped * factor).reshape(w.shape), _bias(bias, scale, shift), {})


def _gemm(node: Node, w: Array, bias: Array | None, affine: Affine) -> Folded | Reject:
    axis = 0 if node.attrs["trans_b"] else 1
    scale, shift = _channels(affine, w.shape[axis])
    if bias is not None:
        if bias.ndim == 2 and bias.shape[0] != 1:
            return Reject("the bias differs between rows", node)
        bias = np.broadcast_to(bias.reshape(-1), (w.shape[axis],)) * node.attrs["beta"]
    # s * (alpha A B + beta c) + t = A (alpha s B) + (beta s c + t)
    return Folded(
        w * _column(scale, 2, axis) * node.attrs["alpha"],
        _bias(bias, scale, shift),
        {"alpha": 1.0, "beta": 1.0},
    )


def _matmul(node: Node, w: Array, bias: Array | None, affine: Affine) -> Folded | Reject:
    scale, shift = _channels(affine, w.shape[-1])
    return Folded(w * scale, _bias(bias, scale, shift), {})


def _bias(bias: Array | None, scale: Array, shift: Array) -> Array | None:
    if bias is None:
        return shift if shift.any() else None
    return bias * scale + shift


_Fold = Callable[[Node, Array, "Array | None", Affine], "Folded | Reject"]
_FOLDS: dict[OpSpec, _Fold] = {
    conv.conv: _conv,
    conv.conv_transpose: _conv_transpose,
    linalg.gemm: _gemm,
    linalg.matmul: _matmul,
}
PRODUCERS = tuple(_FOLDS)


def channel_axis(node: Node) -> int | None:
    """Returns the axis of a producer's result along which its weight has channels, or None."""
    rank = node.outputs[0].rank
    if rank is None:
        return None
    return 1 if node.op in (conv.conv, conv.conv_transpose) else rank - 1


def fold_into(node: Node, affine: Affine) -> Folded | Reject:
    """Returns a producer's constants with an affine map of its result folded in."""
    w = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    reason = _unsuitable(node, w, bias, affine)
    if reason is not None or w is None:
        return reason or Reject("the weight is absent", node)
    arrays = [None if v is None else constant_of(v, _UNLIMITED) for v in (w, bias)]
    wide = [None if array is None else array.astype(np.float64) for array in arrays]
    if wide[0] is None:
        return Reject("the weight is not constant", w)
    if node.op is linalg.matmul and wide[0].ndim < 2:
        return Reject("the weight is a vector", w)
    folded = _FOLDS[node.op](node, wide[0], wide[1], affine)
    if isinstance(folded, Reject):
        return folded
    if not _scales(node, affine):
        folded = replace(folded, weight=None)
    if not fits(folded, w.dtype):
        return Reject(f"the folded weight leaves the range of {w.dtype}", w)
    return folded


def _scales(node: Node, affine: Affine) -> bool:
    """Returns whether a fold changes the weight, and not the bias alone."""
    return bool((affine.scale != 1).any()) or node.attrs.get("alpha", 1.0) != 1.0


def _unsuitable(node: Node, w: Value | None, bias: Value | None, affine: Affine) -> Reject | None:
    if w is None or not is_constant(w):
        return Reject("the weight is not constant", node)
    if bias is not None and not is_constant(bias):
        return Reject("the bias is not constant", bias)
    if w.num_uses > 1 and _scales(node, affine):
        return Reject("the weight is shared", w)
    if w.dtype is None or not w.dtype.is_float or w.dtype.bits < 16:
        return Reject("the weight is quantized", w)
    axis = channel_axis(node)
    if affine.axis is not None and affine.axis != axis:
        return Reject(f"it varies along axis {affine.axis}, channels lie on axis {axis}", node)
    return None


def fits(folded: Folded, dtype: DType | None) -> bool:
    """Returns whether the folded constants are finite in the weight's type."""
    arrays = (folded.weight, folded.bias)
    return dtype is not None and all(
        np.isfinite(_rounded(array, dtype)).all() for array in arrays if array is not None
    )


def keeps_digits(array: Array, dtype: DType) -> bool:
    """Returns whether rounding to `dtype` neither overflows nor loses the digits of small numbers.

    Below the smallest normal number fewer digits are left, and at last zero.
    """
    rounded = _rounded(array, dtype)
    is_small = np.abs(rounded) < float(float_info(dtype).smallest_normal)
    return bool(np.isfinite(rounded).all() and (rounded == array)[is_small].all())


def _rounded(array: Array, dtype: DType) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float64).astype(dtype.numpy).astype(np.float64)


def rebuild(b: Builder, node: Node, x: Value, folded: Folded, role: Role) -> Value:
    """Creates the producer anew with its folded constants; a matmul's bias is added."""
    w = node.inputs[1]
    if w is None or w.dtype is None:
        raise AssertionError("a fold was planned for a producer without a weight")
    name = _name(w, node)
    made_weight = w
    if folded.weight is not None:
        made_weight = constant(b, folded.weight, w.dtype, f"{name}.folded", role)
    bias: Value | None = None
    if folded.bias is not None:
        bias = constant(b, folded.bias, w.dtype, f"{name}.bias", role)
    if node.op is linalg.matmul:
        product = b.op(node.op, x, made_weight)
        return product if bias is None else b.op(arithmetic.add, product, bias)
    return b.op(node.op, x, made_weight, bias, **{**node.attrs, **folded.attrs})


def _name(w: Value, node: Node) -> str:
    producer = w.producer
    if producer is not None and producer.op is weight:
        return str(producer.attrs["name"])
    return node.outputs[0].name or node.op.name


def constant(b: Builder, array: Array, dtype: DType, name: str, role: Role) -> Value:
    """Creates a constant that keeps its role: parameters are always named weights."""
    rounded = np.asarray(array, np.float64).astype(dtype.numpy, order="C")
    if role is Role.CONST:
        return b.constant(rounded, name=name)
    return b.weight(name, ArrayWeight(rounded), role)


__all__ = [
    "PRODUCERS",
    "Folded",
    "channel_axis",
    "constant",
    "fits",
    "fold_into",
    "keeps_digits",
    "rebuild",
    "role_of",
]
