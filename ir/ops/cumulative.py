"""Running sums and products along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec

Array = np.ndarray[Any, Any]


def _rule(node: Node) -> str | None:
    x, axis = node.inputs[0], node.static("axis")
    if x is None or x.rank is None or not isinstance(axis, int):
        return None
    term = " ".join(f"a{i}{'!' * (i == axis % x.rank)}" for i in range(x.rank))
    return f"{term}, . -> {term}"


def _accumulate(c: Any, x: Array, axis_operand: Array | None, ufunc: np.ufunc) -> Array:
    axis = int(np.reshape(c.param("axis", axis_operand), ()))
    if c.attrs["reverse"]:
        x = np.flip(x, axis)
    result: Array = ufunc.accumulate(x, axis, dtype=x.dtype)
    if c.attrs["exclusive"]:
        # the first position has seen nothing: it holds the neutral element
        first = np.full_like(np.take(x, [0], axis), ufunc.identity)
        rest = np.take(result, np.arange(x.shape[axis] - 1), axis)
        result = np.concatenate([first, rest], axis)
    return np.flip(result, axis) if c.attrs["reverse"] else result


def _spec(name: str, source: str, ufunc: np.ufunc) -> OpSpec:
    return OpSpec(
        name=name,
        source=source,
        operands=(Operand("x"), Operand("axis", either=AttrKind.INT)),
        attrs=(
            Attr("exclusive", AttrKind.BOOL, False),  # leave the own position out
            Attr("reverse", AttrKind.BOOL, False),  # from the last position to the first
        ),
        axes=_rule,
        infer=infer_same,
        eval=lambda c, x, axis: _accumulate(c, x, axis, ufunc),
    )


cumsum = _spec("cumsum", "ONNX CumSum-14", np.add)
cumprod = _spec("cumprod", "ONNX CumProd-26", np.multiply)

OPS: tuple[OpSpec, ...] = (cumsum, cumprod)
