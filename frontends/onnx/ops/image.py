"""Importers of image operators: Resize, Upsample, GridSample, AffineGrid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.constants import constant_of
from regraft.ir.dims import known_equal
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic
from regraft.ir.ops import grid_sample as grid
from regraft.ir.ops import resize as ops


def _floats(value: Value | None) -> tuple[float, ...] | None:
    """Returns the content of a vector, None when it is not constant."""
    array = constant_of(value)
    if array is not None:
        return tuple(float(x) for x in array.reshape(-1))
    content = None if value is None else value.content
    if isinstance(content, tuple):
        whole = tuple(float(x) for x in content if isinstance(x, int))
        return whole if len(whole) == len(content) else None
    return None


def _present(value: Value | None) -> Value | None:
    """Returns the operand unless it is empty, which before version 13 means absent."""
    return None if value is None or value.shape == (0,) else value


def import_resize(item: NodeImport) -> Sequence[Value | None]:
    """Imports Resize-11 and later."""
    x = item.require(0)
    roi, scales, sizes = (_present(item.input(i)) for i in (1, 2, 3))
    if sizes is not None:
        scales = None
    axes: tuple[int, ...] | None = item.attr("axes")
    rank = x.rank
    if axes is None and rank is None:
        given = scales if scales is not None else sizes
        rank = given.shape[0] if given is not None and given.shape else None  # type: ignore[assignment]
    if rank is None or not isinstance(rank, int):
        return item.opaque()
    coordinates = item.attr("coordinate_transformation_mode", "half_pixel")
    attrs: dict[str, Any] = {
        "mode": item.attr("mode", "nearest"),
        "coordinates": coordinates,
        "nearest": item.attr("nearest_mode", "round_prefer_floor"),
        "cubic_a": item.attr("cubic_coeff_a", -0.75),
        "exclude_outside": bool(item.attr("exclude_outside", 0)),
        "extrapolation": item.attr("extrapolation_value", 0.0),
        "antialias": bool(item.attr("antialias", 0)),
        "aspect": item.attr("keep_aspect_ratio_policy", "stretch"),
    }
    if coordinates != "tf_crop_and_resize":
        roi = None
    if scales is not None:
        attrs["aspect"] = "stretch"  # it speaks of sizes only
    order = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    return [_resize(item, x, order, roi, scales, sizes, attrs)]


def _resize(
    item: NodeImport,
    x: Value,
    axes: list[int],
    roi: Value | None,
    scales: Value | None,
    sizes: Value | None,
    attrs: dict[str, Any],
) -> Value:
    """Creates the canonical resize: known settings static, axes ascending, unchanged ones out.

    Settings that only run time knows keep the order of the axes that they speak of.
    """
    operands: dict[str, Value | None] = {"roi": roi, "scales": scales, "sizes": sizes}
    static: dict[str, Any] = {
        "roi": _floats(roi),
        "scales": _floats(scales),
        "sizes": None if sizes is None else sizes.content,
    }
    known = all(static[name] is not None for name, v in operands.items() if v is not None)
    if known and x.rank is not None:
        kept = [
            i for i in sorted(range(len(axes)), key=axes.__getitem__)
            if not _unchanged(x, axes[i], i, static, attrs)
        ]  # fmt: skip
        num = len(axes)
        axes = [axes[i] for i in kept]
        for name in ("scales", "sizes"):
            if static[name] is not None:
                static[name] = tuple(static[name][i] for i in kept)
        if static["roi"] is not None:
            ends = [num + i for i in kept]
            static["roi"] = tuple(static["roi"][i] for i in (*kept, *ends))
    for name, value in static.items():
        if value is not None:
            operands[name] = None
    return item.b.op(ops.resize, x, *operands.values(), axes=tuple(axes), **static, **attrs)


def _unchanged(x: Value, axis: int, i: int, static: dict[str, Any], attrs: dict[str, Any]) -> bool:
    """Returns whether resizing leaves an axis as it is."""
    if static["roi"] is not None or attrs["aspect"] != "stretch":
        return False
    if static["scales"] is not None:
        return bool(static["scales"][i] == 1.0)
    return x.shape is not None and known_equal(x.shape[axis], static["sizes"][i])


def _asymmetric_attrs(item: NodeImport) -> dict[str, Any]:
    mode = item.attr("mode", "nearest").replace("bilinear", "linear")
    return {"mode": mode, "coordinates": "asymmetric", "aspect": "stretch"}


def _import_asymmetric(item: NodeImport, scales: Value) -> Sequence[Value | None]:
    """Imports the first Resize: no pixel shift; nearest rounds down growing, up shrinking.

    Axes are independent, so that growing and shrinking ones go one after the other.
    """
    x = item.require(0)
    values = _floats(scales)
    rank = len(values) if values is not None else x.rank
    if rank is None:
        return item.opaque()
    axes = list(range(rank))
    attrs = _asymmetric_attrs(item)
    grows, shrinks = (True, True) if values is None else (max(values) > 1, min(values) < 1)
    if attrs["mode"] != "nearest" or not (grows and shrinks):
        attrs["nearest"] = "ceil" if shrinks else "floor"
        return [_resize(item, x, axes, None, scales, None, attrs)]
    one = item.b.constant(np.ones(1, np.float32))
    for nearest, bound in (("floor", arithmetic.max_), ("ceil", arithmetic.min_)):
        if values is None:
            part = item.b.op(bound, scales, one)
        else:
            fn = max if nearest == "floor" else min
            part = item.b.constant(np.array([fn(v, 1.0) for v in values], np.float32))
        x = _resize(item, x, axes, None, part, None, attrs | {"nearest": nearest})
    return [x]


def import_resize_10(item: NodeImport) -> Sequence[Value | None]:
    """Imports Resize-10."""
    return _import_asymmetric(item, item.require(1))


def import_upsample(item: NodeImport) -> Sequence[Value | None]:
    """Imports Upsample, whose scales are an attribute before version 9; they are never below 1."""
    scales = item.input(1)
    if scales is None:
        scales = item.b.constant(np.array(item.attr("scales"), np.float32))
    if _floats(scales) is not None:
        return _import_asymmetric(item, scales)
    x = item.require(0)
    if x.rank is None:
        return item.opaque()
    attrs = _asymmetric_attrs(item) | {"nearest": "floor"}
    return [_resize(item, x, list(range(x.rank)), None, scales, None, attrs)]


_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}  # version 16's names


def import_grid_sample(item: NodeImport) -> Value:
    """Imports GridSample."""
    mode = item.attr("mode", "linear")
    return item.b.op(
        grid.grid_sample,
        item.require(0),
        item.require(1),
        mode=_GRID_MODES.get(mode, mode),
        padding=item.attr("padding_mode", "zeros"),
        align_corners=bool(item.attr("align_corners", 0)),
    )


def import_affine_grid(item: NodeImport) -> Value:
    """Imports AffineGrid."""
    size, static = item.either(1)
    corners = bool(item.attr("align_corners", 0))
    theta = item.require(0)
    return item.b.op(grid.affine_grid, theta, size, size=static, align_corners=corners)


IMPORTS: tuple[Import, ...] = (
    Import("Resize", {10: import_resize_10, 11: import_resize}),
    Import("Upsample", {7: import_upsample}),
    Import("GridSample", {16: import_grid_sample}),
    Import("AffineGrid", {20: import_affine_grid}),
)
