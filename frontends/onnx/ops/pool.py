"""Importers of pooling, unpooling and regions of interest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.onnx.importer import Import, Importer, NodeImport, direct
from regraft.frontends.onnx.ops.conv import window_attrs
from regraft.ir.graph import Value
from regraft.ir.ops import pool as ops
from regraft.ir.ops import region, unpool


def _pool_attrs(item: NodeImport) -> dict[str, Any]:
    kernel = item.attr("kernel_shape")
    if kernel is None:
        raise item.error("kernel_shape is missing")
    shape = item.require(0).shape
    attrs = window_attrs(item, len(kernel), kernel, None if shape is None else shape[2:])
    return attrs | {"kernel": kernel, "ceil_mode": bool(item.attr("ceil_mode", 0))}


def import_max_pool(item: NodeImport) -> Sequence[Value | None]:
    """Imports MaxPool, with indices only where they are named."""
    attrs = _pool_attrs(item)
    if not item.has_output(1):
        return [item.b.op(ops.max_pool, item.require(0), **attrs)]
    attrs["column_major"] = bool(item.attr("storage_order", 0))
    return item.b.multi(ops.max_pool_with_indices, item.require(0), **attrs)


def import_average_pool(item: NodeImport) -> Value:
    """Imports AveragePool."""
    include = bool(item.attr("count_include_pad", 0))
    attrs = _pool_attrs(item)
    return item.b.op(ops.average_pool, item.require(0), count_include_pad=include, **attrs)


def import_lp_pool(item: NodeImport) -> Sequence[Value | None]:
    """Imports LpPool; version 1 has a float `p`, which must be whole."""
    p = item.attr("p", 2)
    if p != int(p):
        return item.opaque()
    return [item.b.op(ops.lp_pool, item.require(0), p=int(p), **_pool_attrs(item))]


def import_global_lp_pool(item: NodeImport) -> Sequence[Value | None]:
    """Imports GlobalLpPool; version 1 has a float `p`, which must be whole."""
    p = item.attr("p", 2)
    if p != int(p):
        return item.opaque()
    return [item.b.op(ops.global_lp_pool, item.require(0), p=int(p))]


def import_max_unpool(item: NodeImport) -> Value:
    """Imports MaxUnpool."""
    kernel = item.attr("kernel_shape")
    if kernel is None:
        raise item.error("kernel_shape is missing")
    shape, static = item.either(2)
    return item.b.op(
        unpool.max_unpool,
        item.require(0),
        item.require(1),
        shape,
        output_shape=static,
        kernel=kernel,
        strides=item.attr("strides") or (1,) * len(kernel),
        pads=item.attr("pads") or (0,) * (2 * len(kernel)),
    )


def import_col2im(item: NodeImport) -> Sequence[Value | None]:
    """Imports Col2Im; opaque where the number of spatial axes is unknown."""
    image, image_static = item.either(1)
    block, block_static = item.either(2)
    if block_static is not None and not all(isinstance(n, int) for n in block_static):
        block, block_static = item.require(2), None
    known = image_static if image_static is not None else block_static
    rank = _length(item, 1) if known is None else len(known)
    if rank is None:
        return item.opaque()
    return [
        item.b.op(
            unpool.col2im,
            item.require(0),
            image,
            block,
            image_shape=image_static,
            block_shape=block_static,
            strides=item.attr("strides") or (1,) * rank,
            dilations=item.attr("dilations") or (1,) * rank,
            pads=item.attr("pads") or (0,) * (2 * rank),
        )
    ]


def _length(item: NodeImport, idx: int) -> int | None:
    for i in (idx, idx + 1):
        shape = item.require(i).shape
        if shape is not None and isinstance(shape[0], int):
            return shape[0]
    return None


def _roi_align(default: str) -> Importer:
    def run(item: NodeImport) -> Value:
        mode = item.attr("coordinate_transformation_mode", default)
        return item.b.op(
            region.roi_align,
            *item.inputs[:3],
            output_height=item.attr("output_height", 1),
            output_width=item.attr("output_width", 1),
            spatial_scale=item.attr("spatial_scale", 1.0),
            mode=item.attr("mode", "avg"),
            sampling_ratio=item.attr("sampling_ratio", 0),
            half_pixel=mode == "half_pixel",
        )

    return run


def import_max_roi_pool(item: NodeImport) -> Value:
    """Imports MaxRoiPool."""
    height, width = item.attr("pooled_shape")
    return item.b.op(
        region.max_roi_pool,
        *item.inputs[:2],
        output_height=height,
        output_width=width,
        spatial_scale=item.attr("spatial_scale", 1.0),
    )


IMPORTS: tuple[Import, ...] = (
    Import("MaxPool", {1: import_max_pool}),
    Import("AveragePool", {1: import_average_pool}),
    Import("LpPool", {1: import_lp_pool}),
    Import("GlobalMaxPool", {1: direct(ops.global_max_pool)}),
    Import("GlobalAveragePool", {1: direct(ops.global_average_pool)}),
    Import("GlobalLpPool", {1: import_global_lp_pool}),
    Import("MaxUnpool", {9: import_max_unpool}),
    Import("Col2Im", {18: import_col2im}),
    # the first version has no pixel shift; it came as an attribute, on by default
    Import("RoiAlign", {10: _roi_align("output_half_pixel"), 16: _roi_align("half_pixel")}),
    Import("MaxRoiPool", {1: import_max_roi_pool}),
)
