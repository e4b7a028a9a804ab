"""Sampling on grids: grid_sample, affine_grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.interpolation import sample_points
from regraft.ir.ops.windows import spatial_labels
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]


def _infer_grid_sample(node: Node) -> Type:
    x, grid = node.inputs[0], node.inputs[1]
    if x is None or grid is None:
        raise node.error("x or grid is missing")
    if x.shape is None or grid.shape is None:
        return TensorType(x.dtype, None)
    if len(x.shape) != len(grid.shape):
        raise node.error(f"x has rank {len(x.shape)}, grid has rank {len(grid.shape)}")
    return TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))


def _axes_grid_sample(node: Node) -> str | None:
    x = node.inputs[0]
    if x is None or x.rank is None:
        return None
    rank = x.rank - 2
    points = " ".join(f"t{axis}" for axis in range(rank))
    return f"n c {spatial_labels('s', rank)}, n {points} k! -> n c {points}"


def _eval_grid_sample(c: EvalContext, x: Array, grid: Array) -> Array:
    sizes = np.array(x.shape[2:])
    corners = c.attrs["align_corners"]
    # the last axis counts from the innermost axis of x; -1 and 1 are the borders
    unit = grid[..., ::-1].reshape(grid.shape[0], -1, len(sizes)) + 1
    points = unit / 2 * (sizes - 1) if corners else (unit * sizes - 1) / 2
    out = sample_points(
        x, points.astype(grid.dtype), c.attrs["mode"], c.attrs["padding"], corners=corners
    )
    return out.reshape(*x.shape[:2], *grid.shape[1:-1])


def _flops_grid_sample(node: Node) -> DimLike | None:
    """Counts a multiply-accumulate per tap and result element; nearest copies."""
    shape = node.output.shape
    if shape is None:
        return None
    taps = {"nearest": 0, "linear": 2, "cubic": 4}[node.attrs["mode"]]
    num_taps: int = taps ** (len(shape) - 2)
    return product(shape) * (2 * num_taps)


grid_sample = OpSpec(
    name="grid_sample",
    source="ONNX GridSample-22",
    operands=(Operand("x"), Operand("grid")),
    attrs=(
        Attr("mode", AttrKind.STR, "linear"),  # nearest, linear, cubic
        Attr("padding", AttrKind.STR, "zeros"),  # zeros, border, reflection
        Attr("align_corners", AttrKind.BOOL, False),
    ),
    axes=_axes_grid_sample,
    infer=_infer_grid_sample,
    eval=_eval_grid_sample,
    flops=_flops_grid_sample,
)


def _infer_affine_grid(node: Node) -> Type:
    theta, size = node.inputs[0], node.static("size")
    if theta is None:
        raise node.error("theta is missing")
    if size is not None:
        return TensorType(theta.dtype, (size[0], *size[2:], len(size) - 2))
    if theta.shape is None:
        return TensorType(theta.dtype, None)
    rank = theta.shape[1]
    if not isinstance(rank, int):
        return TensorType(theta.dtype, None)
    fresh = [node.fresh_dim(0, 1 + axis) for axis in range(rank)]
    return TensorType(theta.dtype, (theta.shape[0], *fresh, rank))


def _eval_affine_grid(c: EvalContext, theta: Array, size: Array | None) -> Array:
    spatial = tuple(int(n) for n in c.param("size", size))[2:]
    lines = []
    for n in spatial:
        if c.attrs["align_corners"]:
            lines.append(np.linspace(-1, 1, n) if n > 1 else np.zeros(1))
        else:
            lines.append((np.arange(n) * 2 + 1) / n - 1)
    axes = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*axes[::-1], np.ones(spatial)], axis=-1).reshape(-1, len(spatial) + 1)
    grid = points.astype(theta.dtype) @ theta.swapaxes(1, 2)
    return grid.reshape(theta.shape[0], *spatial, len(spatial))


def _flops_affine_grid(node: Node) -> DimLike | None:
    """Counts the product of every point, in homogeneous coordinates, with theta."""
    shape = node.output.shape
    return None if shape is None else product(shape) * (2 * (len(shape) - 1))


affine_grid = OpSpec(
    name="affine_grid",
    source="ONNX AffineGrid-20",
    operands=(Operand("theta"), Operand("size", either=AttrKind.DIMS)),
    attrs=(Attr("align_corners", AttrKind.BOOL, False),),
    infer=_infer_affine_grid,
    eval=_eval_affine_grid,
    flops=_flops_affine_grid,
)

OPS: tuple[OpSpec, ...] = (grid_sample, affine_grid)
