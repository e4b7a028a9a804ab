"""Softmax, log_softmax and hardmax along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.shapes import normalize_axis, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import Type

Array = np.ndarray[Any, Any]

_FLOPS_PER_ELEMENT = 5  # maximum, subtraction, exponential, sum, division (or logarithm)


def _infer(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    if x.shape is not None:
        normalize_axis(node, node.attrs["axis"], len(x.shape))
    return x.type


def _axes(node: Node) -> str | None:
    (x,) = operands_of(node, 1)
    if x.rank is None:
        return None
    axis = node.attrs["axis"] % x.rank
    labels = " ".join(f"a{i}!" if i == axis else f"a{i}" for i in range(x.rank))
    return f"{labels} -> {labels}"


def _flops(node: Node) -> DimLike | None:
    shape = operands_of(node, 1)[0].shape
    return None if shape is None else product(shape) * _FLOPS_PER_ELEMENT


def stable_softmax(x: Array, axis: int = -1) -> Array:
    """Returns exp(x) / sum(exp(x)) along an axis without overflow; a row of -inf gives NaN."""
    shifted = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    result: Array = shifted / np.sum(shifted, axis=axis, keepdims=True)
    return result


def _eval_log_softmax(c: Any, x: Array) -> Array:
    axis = c.attrs["axis"]
    shifted = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return result


def _eval_hardmax(c: Any, x: Array) -> Array:
    axis = c.attrs["axis"]
    result = np.zeros_like(x)
    if x.size:
        first = np.expand_dims(np.argmax(x, axis=axis), axis)
        np.put_along_axis(result, first, x.dtype.type(1), axis=axis)
    return result


def _along_axis(
    name: str, source: str, evaluate: Callable[..., Array], traits: Trait = Trait.PURE
) -> OpSpec:
    return OpSpec(
        name=name,
        source=source,
        operands=(Operand("x"),),
        attrs=(Attr("axis", AttrKind.INT, -1),),
        traits=traits,
        axes=_axes,
        infer=_infer,
        eval=evaluate,
        flops=_flops,
    )


softmax = _along_axis("softmax", "ONNX Softmax-13", lambda c, x: stable_softmax(x, c.attrs["axis"]))
log_softmax = _along_axis("log_softmax", "ONNX LogSoftmax-13", _eval_log_softmax)
# 1 at the first largest element along the axis, else 0
hardmax = _along_axis(
    "hardmax", "ONNX Hardmax-13", _eval_hardmax, traits=Trait.PURE | Trait.DISCRETE
)

OPS: tuple[OpSpec, ...] = (softmax, log_softmax, hardmax)
