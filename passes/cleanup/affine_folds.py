"""Folds of per-channel affine maps into the weights of a neighbour, as steps in f64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.derive import DerivedWeight
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, conv, linalg
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import Reject
from regraft.ir.steps import Cast, Mul, Reshape, Tree
from regraft.ir.types import DType, static_shape
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup.affine import Affine, float_info
from regraft.passes.cleanup.numbers import Numbers, has_source, shaped, wide_tree

Array = np.ndarray[Any, Any]

_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """New constants of a producer.

    Args:
        weight: Steps of the scaled weight, f64; None when the producer's own stays.
        factor: Largest factor by which an element of the weight grows.
        bias: f64[C], or None when it is zero and the producer has none.
        attrs: Attributes of the producer that change.
    """

    weight: Tree | None
    factor: float
    bias: Numbers | None
    attrs: dict[str, Any]


def column(numbers: Numbers, rank: int, axis: int) -> Tree:
    """Returns the steps of numbers along one axis of a tensor of this rank."""
    tree = numbers.tree()
    if not numbers.array.ndim:
        return tree
    return shaped(tree, tuple(numbers.array.size if i == axis else 1 for i in range(rank)))


def _conv(node: Node, w: Value, bias: Numbers | None, affine: Affine) -> Folded | Reject:
    shape = _sizes(w)
    # s * (W x + b) + t = (s W) x + (s b + t), per output channel
    return Folded(
        Mul(wide_tree(w), column(affine.scale, len(shape), 0)),
        largest(affine.scale.array),
        _bias(bias, affine, shape[0]),
        {},
    )


def _conv_transpose(node: Node, w: Value, bias: Numbers | None, affine: Affine) -> Folded | Reject:
    groups, shape = node.attrs["groups"], _sizes(w)
    num = shape[1] * groups
    # weight is [C, M / groups, …]: output channel g * (M / groups) + j belongs to inputs of group g
    grouped = shaped(wide_tree(w), (groups, shape[0] // groups, *shape[1:]))
    factor = shaped(
        affine.scale.spread(num).tree(), (groups, 1, shape[1], *(1,) * (len(shape) - 2))
    )
    return Folded(
        Reshape(Mul(grouped, factor), shape),
        largest(affine.scale.array),
        _bias(bias, affine, num),
        {},
    )


def _gemm(node: Node, w: Value, bias: Numbers | None, affine: Affine) -> Folded | Reject:
    axis = 0 if node.attrs["trans_b"] else 1
    num, alpha, beta = _sizes(w)[axis], node.attrs["alpha"], node.attrs["beta"]
    if bias is not None and beta != 1.0:
        bias = bias * Numbers(np.array(beta, np.float64))
    scale = affine.scale if alpha == 1.0 else affine.scale * Numbers(np.array(alpha, np.float64))
    # s * (alpha A B + beta c) + t = A (alpha s B) + (beta s c + t)
    return Folded(
        Mul(wide_tree(w), column(scale, 2, axis)),
        largest(scale.array),
        _bias(bias, affine, num),
        {"alpha": 1.0, "beta": 1.0},
    )


def _matmul(node: Node, w: Value, bias: Numbers | None, affine: Affine) -> Folded | Reject:
    shape = _sizes(w)
    if len(shape) < 2:
        return Reject("the weight is a vector", w)
    return Folded(
        Mul(wide_tree(w), affine.scale.tree()),
        largest(affine.scale.array),
        _bias(bias, affine, shape[-1]),
        {},
    )


def _bias(bias: Numbers | None, affine: Affine, num: int) -> Numbers | None:
    if bias is None:
        return None if affine.shift.are_zeros else affine.shift.spread(num)
    return (bias * affine.scale + affine.shift).spread(num)


def _sizes(w: Value) -> tuple[int, ...]:
    shape = static_shape(w.type)
    if shape is None:
        raise AssertionError(f"the sizes of the constant {w!r} are not known")
    return shape


def largest(array: Array) -> float:
    """Returns the largest size of an element, NaN when one is NaN."""
    if not array.size:
        return 0.0
    return float(max(abs(float(array.max())), abs(float(array.min()))))


_Fold = Callable[[Node, Value, "Numbers | None", Affine], "Folded | Reject"]
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
    numbers = None
    if bias is not None:
        array = constant_of(bias, _UNLIMITED)
        if array is None or (array.ndim == 2 and array.shape[0] != 1):
            return Reject("the bias differs between rows", node)
        flat = array.astype(np.float64).reshape(-1 if array.size != 1 else ())
        numbers = Numbers(flat, bias)
    folded = _FOLDS[node.op](node, w, numbers, affine)
    if isinstance(folded, Reject):
        return folded
    if not _scales(node, affine):
        folded = replace(folded, weight=None)
    if not fits(folded, w):
        return Reject(f"the folded weight leaves the range of {w.dtype}", w)
    return folded


def _scales(node: Node, affine: Affine) -> bool:
    """Returns whether a fold changes the weight, and not the bias alone."""
    return not affine.scale.are_ones or node.attrs.get("alpha", 1.0) != 1.0


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


def fits(folded: Folded, w: Value) -> bool:
    """Returns whether the folded constants are finite in the weight's type.

    The weight is read once for its largest element; only where that one times the largest factor
    leaves the type's range is the folded weight computed, block by block.
    """
    dtype = w.dtype
    if dtype is None:
        return False
    if folded.bias is not None and not np.isfinite(_rounded(folded.bias.array, dtype)).all():
        return False
    if folded.weight is None:
        return True
    array = constant_of(w, _UNLIMITED)
    if array is None:
        return False
    if largest(array) * folded.factor <= float(float_info(dtype).max):
        return True
    blocks = DerivedWeight(folded.weight).blocks()
    return all(np.isfinite(_rounded(block, dtype)).all() for _, block in blocks)


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
        bias = constant(b, folded.bias.tree(), w.dtype, f"{name}.bias", role)
    if node.op is linalg.matmul:
        product = b.op(node.op, x, made_weight)
        return product if bias is None else b.op(arithmetic.add, product, bias)
    return b.op(node.op, x, made_weight, bias, **{**node.attrs, **folded.attrs})


def _name(w: Value, node: Node) -> str:
    producer = w.producer
    if producer is not None and producer.op is weight:
        return str(producer.attrs["name"])
    return node.outputs[0].name or node.op.name


def constant(b: Builder, tree: Tree, dtype: DType, name: str, role: Role) -> Value:
    """Creates a constant that keeps its role, rounded once: parameters are always named weights.

    Args:
        b: Where.
        tree: Steps of type f64.
        dtype: Element type of the constant.
        name: Name of the weight.
        role: Role of the weight; a parameter stays recorded steps, so that its origin is known.
    """
    derived = DerivedWeight(Cast(tree, dtype) if dtype is not DType.F64 else tree)
    if role is Role.CONST:
        return b.constant(derived.numpy(), name=name)
    return b.weight(name, derived if has_source(tree) else ArrayWeight(derived.numpy()), role)
