"""resize: interpolation along some axes, each on its own.

Canonical form: `axes` are the axes that change, ascending; `scales` or `sizes`, exactly one of
them, give one entry per axis in `axes`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, floordiv, product
from regraft.ir.graph import Node
from regraft.ir.ops.interpolation import Axis1D, resize_axis
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]

_MAX_DENOMINATOR = 64


def scaled_size(size: DimLike, scale: float) -> DimLike | None:
    """Returns floor(size * scale) as runtimes compute it; None when a symbolic size prevents it."""
    if isinstance(size, int):
        # in f32, where 10 * 0.7 is 7 and not 6.999…
        return int(np.floor(np.float32(size) * np.float32(scale)))
    exact = Fraction(scale)
    if exact.denominator > _MAX_DENOMINATOR:
        return None
    return floordiv(size * exact.numerator, exact.denominator)


def _infer_resize(node: Node) -> Type:
    x = node.inputs[0]
    if x is None:
        raise node.error("x is missing")
    if x.shape is None:
        return TensorType(x.dtype, None)
    axes: tuple[int, ...] = node.attrs["axes"]
    if axes and max(axes) >= len(x.shape):
        raise node.error(f"axes {list(axes)} are out of range for rank {len(x.shape)}")
    shape = list(x.shape)
    scales, sizes = node.attrs["scales"], node.static("sizes")
    for given, name in ((scales, "scales"), (sizes, "sizes")):
        if given is not None and len(given) != len(axes):
            raise node.error(f"{len(given)} {name} for axes {list(axes)}")
    for i, axis in enumerate(axes):
        known: DimLike | None = None
        if scales is not None:
            known = scaled_size(x.shape[axis], scales[i])
        elif sizes is not None and node.attrs["aspect"] == "stretch":
            known = sizes[i]
        elif sizes is not None:
            known = _kept_aspect(node, x.shape, sizes, axis)
        shape[axis] = node.fresh_dim(0, axis) if known is None else known
    return TensorType(x.dtype, tuple(shape))


def _kept_aspect(
    node: Node, shape: tuple[DimLike, ...], sizes: tuple[DimLike, ...], axis: int
) -> int | None:
    old = [shape[a] for a in node.attrs["axes"]]
    whole = [item for item in (*old, *sizes, shape[axis]) if isinstance(item, int)]
    if len(whole) != 2 * len(old) + 1:
        return None
    num = len(old)
    scale = aspect_scale(node.attrs["aspect"], whole[:num], whole[num : 2 * num])
    return int(scale * whole[-1] + 0.5)


def aspect_scale(policy: str, old: list[int], new: list[int]) -> float:
    """Returns the one scale that keeps the aspect ratio: `not_larger` or `not_smaller`."""
    ratios = [b / a for a, b in zip(old, new, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)


def _axes_resize(node: Node) -> str | None:
    x = node.inputs[0]
    if x is None or x.rank is None:
        return None
    resized = node.attrs["axes"]
    source = [f"s{a}!" if a in resized else f"a{a}" for a in range(x.rank)]
    target = [f"t{a}!" if a in resized else f"a{a}" for a in range(x.rank)]
    return f"{' '.join(source)}, ., ., . -> {' '.join(target)}"


def _eval_resize(
    c: EvalContext, x: Array, roi: Array | None, scales: Array | None, sizes: Array | None
) -> Array:
    axes: tuple[int, ...] = c.attrs["axes"]
    old = [x.shape[axis] for axis in axes]
    crop = c.attrs["coordinates"] == "tf_crop_and_resize"
    whole = [0.0] * len(axes) + [1.0] * len(axes)
    region = [float(v) for v in c.param("roi", roi)] if crop else whole
    new: list[int]
    if c.attrs["scales"] is not None or scales is not None:
        factors = [float(v) for v in c.param("scales", scales)]
        new = [
            int(np.floor(np.float32(n) * np.float32(f))) for n, f in zip(old, factors, strict=True)
        ]
    else:
        new = [int(v) for v in c.param("sizes", sizes)]
        factors = [b / a if a else 1.0 for a, b in zip(old, new, strict=True)]
        if c.attrs["aspect"] != "stretch":
            factors = [aspect_scale(c.attrs["aspect"], old, new)] * len(axes)
            new = [int(f * n + 0.5) for f, n in zip(factors, old, strict=True)]
    result = x if x.dtype.kind == "f" else x.astype(np.float64)
    for i, axis in enumerate(axes):
        setting = Axis1D(
            mode=c.attrs["mode"],
            coordinates=c.attrs["coordinates"],
            nearest=c.attrs["nearest"],
            cubic_a=c.attrs["cubic_a"],
            exclude_outside=c.attrs["exclude_outside"],
            extrapolation=c.attrs["extrapolation"],
            antialias=c.attrs["antialias"],
            scale=factors[i],
            size=new[i],
            roi=(region[i], region[len(axes) + i]),
        )
        result = resize_axis(result, axis, setting)
    if x.dtype.kind == "f":
        return result
    info = np.iinfo(x.dtype)
    return np.clip(np.rint(result), info.min, info.max).astype(x.dtype)


def _flops_resize(node: Node) -> DimLike | None:
    """Counts a multiply-accumulate per tap, axis and result element; nearest copies."""
    shape = node.output.shape
    taps = {"nearest": 0, "linear": 2, "cubic": 4}[node.attrs["mode"]]
    return None if shape is None else product(shape) * (2 * taps * len(node.attrs["axes"]))


resize = OpSpec(
    name="resize",
    source="ONNX Resize-19",
    operands=(
        Operand("x"),
        Operand("roi", optional=True, either=AttrKind.FLOATS),  # starts, then ends, per axis
        Operand("scales", optional=True, either=AttrKind.FLOATS),
        Operand("sizes", optional=True, either=AttrKind.DIMS),
    ),
    attrs=(
        Attr("axes", AttrKind.INTS),
        Attr("mode", AttrKind.STR, "nearest"),  # nearest, linear, cubic
        # half_pixel, half_pixel_symmetric, pytorch_half_pixel, align_corners, asymmetric,
        # tf_crop_and_resize, tf_half_pixel_for_nn
        Attr("coordinates", AttrKind.STR, "half_pixel"),
        # round_prefer_floor, round_prefer_ceil, floor, ceil
        Attr("nearest", AttrKind.STR, "round_prefer_floor"),
        Attr("cubic_a", AttrKind.FLOAT, -0.75),
        Attr("exclude_outside", AttrKind.BOOL, False),
        Attr("extrapolation", AttrKind.FLOAT, 0.0),  # value outside the region of crop_and_resize
        Attr("antialias", AttrKind.BOOL, False),
        Attr("aspect", AttrKind.STR, "stretch"),  # stretch, not_larger, not_smaller
    ),
    axes=_axes_resize,
    infer=_infer_resize,
    eval=_eval_resize,
    flops=_flops_resize,
)

OPS: tuple[OpSpec, ...] = (resize,)
