"""Normalization without a gain: local_response_norm, lp_norm, mean_variance_norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.shapes import infer_same, normalize_axis
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]

_X = (Operand("x"),)


def _flops(node: Node, per_element: int) -> DimLike | None:
    shape = node.output.shape
    return None if shape is None else product(shape) * per_element


def _eval_local_response(c: EvalContext, x: Array) -> Array:
    size = c.attrs["size"]
    before, after = (size - 1) // 2, size // 2
    channels = x.shape[1]
    square = np.square(x)
    total = np.zeros_like(x)
    for shift in range(-before, after + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        if low < high:
            total[:, low:high] += square[:, low + shift : high + shift]
    base = c.attrs["bias"] + c.attrs["alpha"] / size * total
    out: Array = (x / base ** c.attrs["beta"]).astype(x.dtype, copy=False)
    return out


local_response_norm = OpSpec(
    name="local_response_norm",
    source="ONNX LRN-13",
    operands=_X,
    attrs=(
        Attr("size", AttrKind.INT),  # channels in the neighbourhood
        Attr("alpha", AttrKind.FLOAT, 1e-4),
        Attr("beta", AttrKind.FLOAT, 0.75),
        Attr("bias", AttrKind.FLOAT, 1.0),
    ),
    axes="n c! *s -> n c! *s",
    infer=infer_same,
    eval=_eval_local_response,
    flops=lambda node: _flops(node, node.attrs["size"] + 4),
)


def _rule_over(node: Node, fixed: tuple[int, ...]) -> str | None:
    x = node.inputs[0]
    if x is None or x.rank is None:
        return None
    fixed = tuple(axis % x.rank for axis in fixed)
    term = " ".join(f"a{axis}" + "!" * (axis in fixed) for axis in range(x.rank))
    return f"{term} -> {term}"


def _infer_lp(node: Node) -> Type:
    x = node.inputs[0]
    if x is not None and x.rank is not None:
        normalize_axis(node, node.attrs["axis"], x.rank)
    return infer_same(node)


def _eval_lp(c: EvalContext, x: Array) -> Array:
    axis, p = c.attrs["axis"], c.attrs["p"]
    norm = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
    return np.where(norm == 0, 0, x / norm).astype(x.dtype, copy=False)  # 0 / 0 -> 0


lp_norm = OpSpec(
    name="lp_norm",
    source="ONNX LpNormalization-22",
    operands=_X,
    attrs=(Attr("axis", AttrKind.INT, -1), Attr("p", AttrKind.INT, 2)),
    axes=lambda node: _rule_over(node, (node.attrs["axis"],)),
    infer=_infer_lp,
    eval=_eval_lp,
    flops=lambda node: _flops(node, 3),
)


def _infer_mean_variance(node: Node) -> Type:
    x = node.inputs[0]
    if x is not None and x.rank is not None:
        for axis in node.attrs["axes"]:
            normalize_axis(node, axis, x.rank)
    return infer_same(node)


def _eval_mean_variance(c: EvalContext, x: Array) -> Array:
    axes = c.attrs["axes"]
    centered = x - x.mean(axis=axes, keepdims=True)
    std = np.sqrt(np.square(centered).mean(axis=axes, keepdims=True))
    out: Array = (centered / (std + 1e-9)).astype(
        x.dtype, copy=False
    )  # 1e-9 is the source's constant
    return out


mean_variance_norm = OpSpec(
    name="mean_variance_norm",
    source="ONNX MeanVarianceNormalization-13",
    operands=_X,
    attrs=(Attr("axes", AttrKind.INTS, (0, 2, 3)),),
    axes=lambda node: _rule_over(node, node.attrs["axes"]),
    infer=_infer_mean_variance,
    eval=_eval_mean_variance,
    flops=lambda node: _flops(node, 5),
)

OPS: tuple[OpSpec, ...] = (local_response_norm, lp_norm, mean_variance_norm)
