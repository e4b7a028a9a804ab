"""Importers of resampling: upsample, grid_sampler, affine_grid."""

from __future__ import annotations

from typing import Any

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.shape import shape_of
from regraft.ir.dims import Dim, known_equal
from regraft.ir.graph import Value
from regraft.ir.ops.grid_sample import affine_grid, grid_sample
from regraft.ir.ops.resize import resize, scaled_size

_GRID_MODES = ("linear", "nearest", "cubic")
_GRID_PADDING = ("zeros", "border", "reflection")


def _scales(c: CallImport, rank: int) -> tuple[float, ...] | None:
    """Returns the factors that the caller gave, None when there are sizes only."""
    given = c.args.get("scale_factors")
    if given is None:
        names = {1: ("scales",), 2: ("scales_h", "scales_w"),
                 3: ("scales_d", "scales_h", "scales_w")}[rank]  # fmt: skip
        given = [c.args.get(name) for name in names]
    if any(not isinstance(factor, int | float) for factor in given):
        return None
    return tuple(float(factor) for factor in given)


def _resize(mode: str, *, exact: bool = False) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("input" if "input" in c.args else "self")
        shape = shape_of(x)
        rank = len(shape) - 2
        axes = tuple(range(2, len(shape)))
        attrs: dict[str, Any] = {"axes": axes, "mode": mode}
        attrs["coordinates"] = _coordinates(c, mode, exact=exact)
        if mode == "nearest":
            attrs["nearest"] = "round_prefer_ceil" if exact else "floor"
        if mode == "cubic":
            attrs["cubic_a"] = -0.75
        # corners are aligned by the sizes, whatever factor led to them
        aligned = attrs["coordinates"] == "align_corners"
        scales = None if aligned else _scales(c, rank)
        wanted = c.shape[2:]
        fits = scales is not None and all(
            (found := scaled_size(size, factor)) is not None and known_equal(found, want)
            for size, factor, want in zip(shape[2:], scales, wanted, strict=True)
        )
        if fits:
            return c.b.op(resize, x, scales=scales, **attrs)
        if scales is not None and any(isinstance(size, Dim) for size in wanted):
            raise UnsupportedCallError(f"factors {list(scales)} of a symbolic size")
        return c.b.op(resize, x, sizes=wanted, **attrs)

    return run


def _coordinates(c: CallImport, mode: str, *, exact: bool) -> str:
    if mode == "nearest":
        return "half_pixel" if exact else "asymmetric"
    return "align_corners" if c.args.get("align_corners") else "half_pixel"


def _grid_sample(c: CallImport) -> Value:
    return c.b.op(
        grid_sample, c.value("input"), c.value("grid"),
        mode=_GRID_MODES[c.attr("interpolation_mode")],
        padding=_GRID_PADDING[c.attr("padding_mode")],
        align_corners=bool(c.attr("align_corners")),
    )  # fmt: skip


def _affine_grid(c: CallImport) -> Value:
    return c.b.op(
        affine_grid, c.value("theta"), size=c.sizes("size"),
        align_corners=bool(c.attr("align_corners")),
    )  # fmt: skip


def _names(*names: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}.{kind}" for name in names for kind in ("default", "vec"))


IMPORTS: tuple[Import, ...] = (
    row(
        _resize("nearest"),
        *_names("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    ),
    row(
        _resize("nearest", exact=True),
        *_names("_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
                "_upsample_nearest_exact3d"),
    ),
    row(
        _resize("linear"),
        *_names("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    ),
    row(_resize("cubic"), *_names("upsample_bicubic2d")),
    row(
        _grid_sample, "aten.grid_sampler.default", "aten.grid_sampler_2d.default",
        "aten.grid_sampler_3d.default",
    ),
    row(_affine_grid, "aten.affine_grid_generator.default"),
)  # fmt: skip
