"""Importers of resampling with an antialiasing filter, as products with constant matrices.

`resize` takes what its filter leaves over at a border from the border's pixel; PyTorch and Pillow
drop it and scale the rest up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.shape import moved, shape_of
from regraft.ir.graph import Value
from regraft.ir.ops.linalg import matmul
from regraft.ir.types import DType

Array = np.ndarray[Any, Any]
Filter = Callable[[Array], Array]


def _triangle(x: Array) -> Array:
    result: Array = np.clip(1 - np.abs(x), 0, None)
    return result


def _keys(x: Array) -> Array:
    """Keys 1981 with a = -1/2, as Pillow has it."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    result: Array = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return result


def _scale(old: int, new: int, factor: float | None, *, align_corners: bool) -> float:
    if align_corners:
        return (old - 1) / (new - 1) if new > 1 else 0.0
    return old / new if factor is None else 1 / factor


def _matrix(old: int, new: int, scale: float, radius: float, kernel: Filter) -> Array:
    """Returns the weights `f64[old, new]` of every source position in every result."""
    stretch = max(scale, 1.0)
    support = radius * stretch
    matrix = np.zeros((old, new))
    for i in range(new):
        center = scale * (i + 0.5)
        start, end = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), old)
        weights = kernel((np.arange(start, end) - center + 0.5) / stretch)
        total = weights.sum()
        matrix[start:end, i] = weights / total if total else weights
    return matrix


def _filtered(kernel: Filter, radius: float) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("input" if "input" in c.args else "self")
        given = c.args.get("scale_factors")
        factors = given or (c.args.get("scales_h"), c.args.get("scales_w"))
        for i, axis in ((1, 3), (0, 2)):
            old, new = shape_of(x)[axis], c.shape[axis]
            if not isinstance(old, int) or not isinstance(new, int):
                raise UnsupportedCallError("an antialiasing filter of symbolic size")
            scale = _scale(old, new, factors[i], align_corners=bool(c.attr("align_corners")))
            x = _along(c, x, axis, _matrix(old, new, scale, radius, kernel))
        return x

    return run


def _along(c: CallImport, x: Value, axis: int, matrix: Array) -> Value:
    """Returns the product of one axis with a matrix."""
    dtype = x.dtype or DType.F32
    weights = c.b.constant(matrix, dtype, name="filter")
    if axis == 3:
        return c.b.op(matmul, x, weights)
    turned = c.b.op(matmul, moved(c, x, (0, 1, 3, 2)), weights)
    return moved(c, turned, (0, 1, 3, 2))


IMPORTS: tuple[Import, ...] = (
    row(
        _filtered(_triangle, 1.0), "aten._upsample_bilinear2d_aa.default",
        "aten._upsample_bilinear2d_aa.vec",
    ),
    row(
        _filtered(_keys, 2.0), "aten._upsample_bicubic2d_aa.default",
        "aten._upsample_bicubic2d_aa.vec",
    ),
)  # fmt: skip
