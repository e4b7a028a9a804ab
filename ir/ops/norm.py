"""Normalization with a gain: batch_norm, instance_norm, group_norm, layer_norm, rms_norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, exactdiv, known_different, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, reshaping
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Flops, Operand, OpSpec
from regraft.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]


def _flops_per_element(num: int) -> Flops:
    """Returns a cost rule: `num` operations per element (statistics, scale and shift)."""

    def flops(node: Node) -> DimLike | None:
        shape = node.output.shape
        return None if shape is None else product(shape) * num

    return flops


_EPSILON = Attr("epsilon", AttrKind.FLOAT, 1e-5)
_AFFINE = (Operand("x"), Operand("scale"), Operand("bias"))


def _per_channel(array: Array, rank: int) -> Array:
    return array.reshape(-1, *(1,) * (rank - 2)) if rank > 1 else array


def _infer_channel_norm(node: Node) -> Type:
    x = node.inputs[0]
    if x is not None and x.shape is not None and len(x.shape) > 1:
        for operand, value in zip(node.op.operands[1:], node.inputs[1:], strict=True):
            if value is None or value.shape is None:
                continue
            if len(value.shape) != 1 or known_different(value.shape[0], x.shape[1]):
                raise node.error(
                    f"`{operand.name}` has shape {list(value.shape)}, x has {x.shape[1]} channels"
                )
    return infer_same(node)


def _rank(node: Node) -> int | None:
    x = node.inputs[0]
    return None if x is None else x.rank


def _axes_batch_norm(node: Node) -> str | None:
    rank = _rank(node)
    return "n c *s, c, c, c, c -> n c *s" if rank is not None and rank > 1 else None


def _eval_batch_norm(
    c: EvalContext, x: Array, scale: Array, bias: Array, mean: Array, var: Array
) -> Array:
    factor = scale / np.sqrt(var + c.attrs["epsilon"])
    shift = bias - mean * factor
    dtype = x.dtype
    factor, shift = factor.astype(dtype, copy=False), shift.astype(dtype, copy=False)
    return x * _per_channel(factor, x.ndim) + _per_channel(shift, x.ndim)


batch_norm = OpSpec(
    name="batch_norm",
    source="ONNX BatchNormalization-15 (inference)",
    operands=(*_AFFINE, Operand("mean"), Operand("var")),
    attrs=(_EPSILON,),
    axes=_axes_batch_norm,
    infer=_infer_channel_norm,
    eval=_eval_batch_norm,
    flops=_flops_per_element(2),
)


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centered).mean(axis=axes, keepdims=True)
    normal: Array = centered / np.sqrt(variance + x.dtype.type(epsilon))
    return normal


def _eval_instance_norm(c: EvalContext, x: Array, scale: Array, bias: Array) -> Array:
    normal = _standardize(x, tuple(range(2, x.ndim)), c.attrs["epsilon"])
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


instance_norm = OpSpec(
    name="instance_norm",
    source="ONNX InstanceNormalization-22",
    operands=_AFFINE,
    attrs=(_EPSILON,),
    axes="n c *s!, c, c -> n c *s!",
    infer=_infer_channel_norm,
    eval=_eval_instance_norm,
    flops=_flops_per_element(7),
)


def _eval_group_norm(c: EvalContext, x: Array, scale: Array, bias: Array) -> Array:
    grouped = x.reshape(x.shape[0], c.attrs["groups"], -1)
    normal = _standardize(grouped, (2,), c.attrs["epsilon"]).reshape(x.shape)
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


def _group_norm_body(node: Node, b: Builder) -> Value:
    """Returns the instance norm of the groups, scaled and shifted per channel."""
    x, scale, bias = node.inputs
    if x is None or x.shape is None or x.dtype is None or scale is None or bias is None:
        raise AssertionError("the body of group_norm needs a shape and an element type")
    groups, shape = node.attrs["groups"], x.shape
    grouped_shape = (shape[0], groups, exactdiv(product(shape[1:]), groups))
    grouped = b.op(reshaping.reshape, x, shape=grouped_shape)
    unit = [b.constant(np.full(groups, value, x.dtype.numpy)) for value in (1, 0)]
    normal = b.op(instance_norm, grouped, *unit, epsilon=node.attrs["epsilon"])
    normal = b.op(reshaping.reshape, normal, shape=shape)
    per_channel = (shape[1], *(1,) * (len(shape) - 2))
    gain = b.op(reshaping.reshape, scale, shape=per_channel)
    shift = b.op(reshaping.reshape, bias, shape=per_channel)
    return b.op(arithmetic.add, b.op(arithmetic.mul, normal, gain), shift)


group_norm = OpSpec(
    name="group_norm",
    source="ONNX GroupNormalization-21",
    operands=_AFFINE,
    attrs=(Attr("groups", AttrKind.INT), _EPSILON),
    axes="n (g c!) *s!, (g c!), (g c!) -> n (g c!) *s!",
    counts={"groups": "g"},
    infer=_infer_channel_norm,
    eval=_eval_group_norm,
    flops=_flops_per_element(7),
    body=_group_norm_body,
)


def _normal_labels(num: int) -> list[str]:
    return [f"c{axis}!?" for axis in range(num)]


def _gain_term(value: Value | None, num: int) -> str:
    """Returns the term of a gain that broadcasts, aligned right, to what is normalized."""
    rank = num if value is None or value.rank is None else value.rank
    labels = _normal_labels(num)
    if rank < num:
        return " ".join(labels[num - rank :])
    return " ".join((["*b"] if rank > num else []) + labels)


def _axes_trailing(node: Node) -> str | None:
    rank = _rank(node)
    axis = node.attrs["axis"]
    if axis >= 0:
        if rank is None:
            return None
        axis -= rank
    num = -axis
    term = " ".join(["*b", *_normal_labels(num)])
    gains = ", ".join(_gain_term(value, num) for value in node.inputs[1:])
    results = ", ".join([term, *["*b " + "1 " * num] * (len(node.outputs) - 1)])
    return f"{term}, {gains} -> {results}"


def _trailing_axes(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(range(axis % rank, rank)) if rank else ()


def _num_kept(node: Node) -> int | None:
    """Returns how many leading axes are not normalized, None for an unknown rank."""
    rank, axis = _rank(node), node.attrs["axis"]
    if rank is None:
        return None
    if not -rank <= axis < max(rank, 1):
        raise node.error(f"axis {axis} is out of range for rank {rank}")
    return int(axis) + rank if axis < 0 else int(axis)


def _infer_layer_norm(node: Node) -> tuple[Type, ...]:
    statistics = TensorType(node.attrs["compute_dtype"], None)
    kept = _num_kept(node)
    x = node.inputs[0]
    if kept is not None and x is not None and x.shape is not None:
        statistics = statistics.with_shape((*x.shape[:kept], *(1,) * (len(x.shape) - kept)))
    return infer_same(node), statistics, statistics


def _eval_layer_norm(
    c: EvalContext, x: Array, scale: Array, bias: Array | None
) -> tuple[Array, Array, Array]:
    axes = _trailing_axes(c.attrs["axis"], x.ndim)
    mean = x.mean(axis=axes, keepdims=True)
    centered = x - mean
    variance = np.square(centered).mean(axis=axes, keepdims=True)
    inv_std = 1 / np.sqrt(variance + x.dtype.type(c.attrs["epsilon"]))
    out = centered * inv_std * scale
    return (out if bias is None else out + bias).astype(x.dtype, copy=False), mean, inv_std


_AXIS = Attr("axis", AttrKind.INT, -1)  # first normalized axis, negative where the rank is known
_COMPUTE = Attr("compute_dtype", AttrKind.DTYPE, DType.F32)

layer_norm = OpSpec(
    name="layer_norm",
    source="ONNX LayerNormalization-17",
    operands=(Operand("x"), Operand("scale"), Operand("bias", optional=True)),
    results=("out", "mean?", "inv_std?"),
    attrs=(_AXIS, _EPSILON, _COMPUTE),
    axes=_axes_trailing,
    infer=_infer_layer_norm,
    eval=_eval_layer_norm,
    flops=_flops_per_element(7),
)


def _infer_rms_norm(node: Node) -> tuple[Type, ...]:
    out, inv_std, _ = _infer_layer_norm(node)
    return out, inv_std


def _eval_rms_norm(c: EvalContext, x: Array, scale: Array) -> tuple[Array, Array]:
    axes = _trailing_axes(c.attrs["axis"], x.ndim)
    square = np.square(x).mean(axis=axes, keepdims=True)
    inv_std = 1 / np.sqrt(square + x.dtype.type(c.attrs["epsilon"]))
    return (x * inv_std * scale).astype(x.dtype, copy=False), inv_std


rms_norm = OpSpec(
    name="rms_norm",
    source="ONNX RMSNormalization-23",
    operands=(Operand("x"), Operand("scale")),
    results=("out", "inv_std?"),
    attrs=(_AXIS, _EPSILON, _COMPUTE),
    axes=_axes_trailing,
    infer=_infer_rms_norm,
    eval=_eval_rms_norm,
    flops=_flops_per_element(4),
)

OPS: tuple[OpSpec, ...] = (batch_norm, instance_norm, group_norm, layer_norm, rms_norm)
