"""Emitters of resizing, sampling, regions and boxes."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library.boxes import suppress_boxes
from regraft.backends.torch.library.regions import align_regions, pool_regions
from regraft.backends.torch.library.resizing import resize_axes
from regraft.backends.torch.library.sampling import sample_grid
from regraft.backends.torch.ops.params import operand, sizes_param, static_sizes
from regraft.ir.dims import DimLike
from regraft.ir.ops import detection, grid_sample, region
from regraft.ir.ops import resize as ops

_BY_RANK = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _emit_resize(e: EmitContext) -> str:
    plain = _interpolated(e)
    if plain is not None:
        return plain
    attrs = e.node.attrs
    names = (
        "axes", "mode", "coordinates", "nearest", "cubic_a", "exclude_outside", "extrapolation",
        "antialias", "aspect",
    )  # fmt: skip
    settings = [f"{name}={attrs[name]!r}" for name in names]
    for name in ("roi", "scales"):
        static, value = attrs[name], e.node.operand(name)
        if name == "roi" and attrs["coordinates"] != "tf_crop_and_resize":
            continue
        if static is not None:
            settings.append(f"{name}={tuple(float(item) for item in static)}")
        elif value is not None:
            settings.append(f"{name}={e.name(value)}.tolist()")
    sizes = sizes_param(e, "sizes")
    if sizes is not None and not any(text.startswith("scales") for text in settings):
        settings.append(f"sizes={sizes}")
    return f"{e.helper(resize_axes)}({e.input(0)}, {', '.join(settings)})"


def _interpolated(e: EmitContext) -> str | None:
    """Returns `F.interpolate` where it is exactly the same, else None."""
    x, attrs = operand(e, 0), e.node.attrs
    if x.shape is None or x.dtype is None or not x.dtype.is_float or len(x.shape) not in _BY_RANK:
        return None
    axes, rank = attrs["axes"], len(x.shape)
    if any(axis < 2 for axis in axes) or attrs["aspect"] != "stretch" or attrs["antialias"]:
        return None
    factors = _factors(e, x.shape)
    if factors is None:
        return None
    mode = _mode(e, factors, rank)
    if mode is None:
        return None
    where = {axis: i for i, axis in enumerate(axes)}
    if attrs["scales"] is not None and all(float(s).is_integer() for s in attrs["scales"]):
        spatial = [attrs["scales"][where[a]] if a in where else 1.0 for a in range(2, rank)]
        text = (
            repr(float(spatial[0])) if len(set(spatial)) == 1 else str(tuple(map(float, spatial)))
        )
        size = f"scale_factor={text}"
    else:
        shape = e.node.output.shape or ()
        if not all(e.graph.sizes.can_read(dim) for dim in shape[2:]):
            return None
        size = f"size={e.sizes(shape[2:])}"
    corners = ", align_corners=True" if attrs["coordinates"] == "align_corners" else ""
    return f'F.interpolate({e.input(0)}, {size}, mode="{mode}"{corners})'


def _factors(e: EmitContext, shape: tuple[DimLike, ...]) -> tuple[float | None, ...] | None:
    """Returns new over old size per axis (None: not static); None where sizes are not exact."""
    axes, scales = e.attr("axes"), e.attr("scales")
    if scales is not None:
        exact = all(
            float(scale).is_integer() or (isinstance(size, int) and (size * scale).is_integer())
            for scale, size in zip(scales, (shape[axis] for axis in axes), strict=True)
        )
        return tuple(map(float, scales)) if exact else None
    sizes = static_sizes(e, "sizes")
    if sizes is None or e.node.operand("scales") is not None:
        return None
    pairs = zip(sizes, (shape[axis] for axis in axes), strict=True)
    return tuple(b / a if isinstance(a, int) and isinstance(b, int) else None for b, a in pairs)


def _mode(e: EmitContext, factors: tuple[float | None, ...], rank: int) -> str | None:
    mode, coordinates, nearest = (e.attr(name) for name in ("mode", "coordinates", "nearest"))
    if mode == "nearest":
        if coordinates == "asymmetric" and nearest == "floor":
            return "nearest"
        # ties of rounding do not occur where every factor is a whole number
        whole = all(factor is not None and factor.is_integer() for factor in factors)
        if coordinates in ("half_pixel", "pytorch_half_pixel") and (
            nearest == "round_prefer_ceil" or (nearest == "round_prefer_floor" and whole)
        ):
            return "nearest-exact"
        return None
    sizes = e.node.output.shape or ()
    single = any(not isinstance(sizes[a], int) or sizes[a] == 1 for a in e.attr("axes"))
    if coordinates not in ("half_pixel", "align_corners") and (
        coordinates != "pytorch_half_pixel" or single
    ):
        return None
    if mode == "linear":
        return _BY_RANK[rank]
    is_cubic = rank == 4 and e.attr("cubic_a") == -0.75 and not e.attr("exclude_outside")
    return "bicubic" if is_cubic else None


def _emit_grid_sample(e: EmitContext) -> str:
    mode, padding, corners = (e.attr(name) for name in ("mode", "padding", "align_corners"))
    x, grid = operand(e, 0), operand(e, 1)
    grid_name = e.input(1)
    if grid.dtype is not x.dtype and x.dtype is not None:
        grid_name = f"{grid_name}.to({e.dtype(x.dtype)})"
    if x.rank == 4 or (x.rank == 5 and mode != "cubic"):
        named = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
        how = f'mode="{named}", padding_mode="{padding}", align_corners={corners}'
        return f"F.grid_sample({e.input(0)}, {grid_name}, {how})"
    call = e.helper(sample_grid)
    return f"{call}({e.input(0)}, {grid_name}, {mode!r}, {padding!r}, {corners})"


def _emit_affine_grid(e: EmitContext) -> str:
    size = sizes_param(e, "size")
    return f"F.affine_grid({e.input(0)}, {size}, align_corners={e.attr('align_corners')})"


def _bins(e: EmitContext) -> str:
    return f"{e.attr('output_height')}, {e.attr('output_width')}, {e.attr('spatial_scale')!r}"


def _emit_roi_align(e: EmitContext) -> str:
    how = f"{e.attr('mode')!r}, {e.attr('sampling_ratio')}, {e.attr('half_pixel')}"
    return f"{e.helper(align_regions)}({', '.join(e.inputs)}, {_bins(e)}, {how})"


def _emit_max_roi_pool(e: EmitContext) -> str:
    return f"{e.helper(pool_regions)}({', '.join(e.inputs)}, {_bins(e)})"


def _emit_non_max_suppression(e: EmitContext) -> str:
    call = e.helper(suppress_boxes)
    inputs = e.inputs + ["None"] * (5 - len(e.inputs))
    return f"{call}({', '.join(inputs)}, {e.attr('center_point_box')})"


EMITS = (
    Emit(ops.resize, _emit_resize),
    Emit(grid_sample.grid_sample, _emit_grid_sample),
    Emit(grid_sample.affine_grid, _emit_affine_grid),
    Emit(region.roi_align, _emit_roi_align),
    Emit(region.max_roi_pool, _emit_max_roi_pool),
    Emit(detection.non_max_suppression, _emit_non_max_suppression),
)
