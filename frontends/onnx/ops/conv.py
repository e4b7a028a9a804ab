"""Importers of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import activation, arithmetic, causal_conv, functions
from regraft.ir.ops import conv as ops
from regraft.ir.ops import deform_conv as deform
from regraft.ir.ops.windows import Windows, extent, static_pads

Sizes = tuple[int, ...]


def window_attrs(
    item: NodeImport,
    rank: int,
    kernel: tuple[DimLike, ...] | None,
    sizes: tuple[DimLike, ...] | None,
) -> dict[str, Any]:
    """Returns strides, dilations, pads and auto_pad, with pads explicit where sizes allow.

    Args:
        item: The node.
        rank: Number of spatial axes.
        kernel: Taps per axis, None when unknown.
        sizes: Spatial sizes of x, None when unknown.
    """
    strides: Sizes = item.attr("strides") or (1,) * rank
    dilations: Sizes = item.attr("dilations") or (1,) * rank
    pads: Sizes = item.attr("pads") or (0,) * (2 * rank)
    mode = (item.attr("auto_pad") or "NOTSET").lower()
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise item.error(
            f"strides {list(strides)}, dilations {list(dilations)} and pads {list(pads)} do not "
            f"fit {rank} spatial axes"
        )
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": pads}
    if mode == "notset":
        return attrs
    attrs["pads"] = (0,) * (2 * rank)
    if mode == "valid":
        return attrs
    if mode not in ("same_upper", "same_lower"):
        raise item.error(f"auto_pad is `{mode}`, expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    windows = Windows(kernel or (), strides, dilations, attrs["pads"], mode)
    known = None if kernel is None or sizes is None else static_pads(windows, sizes)
    if known is not None:
        return attrs | {"pads": known}
    return attrs | {"auto_pad": mode}


def spatial_rank(item: NodeImport) -> int | None:
    """Returns the number of spatial axes of x and weight, or None."""
    ranks = (item.rank(1), item.rank(0))
    known = next((rank - 2 for rank in ranks if rank is not None), None)
    kernel = item.attr("kernel_shape")
    return len(kernel) if known is None and kernel else known


def _spatial(value: Value) -> tuple[DimLike, ...] | None:
    return None if value.shape is None else value.shape[2:]


def _conv_attrs(item: NodeImport, rank: int) -> dict[str, Any]:
    x, weight = item.require(0), item.require(1)
    return window_attrs(item, rank, _spatial(weight), _spatial(x)) | {
        "groups": item.attr("group", 1)
    }


def import_conv(item: NodeImport) -> Sequence[Value | None]:
    """Imports Conv; opaque where not even the rank is known."""
    rank = spatial_rank(item)
    if rank is None:
        return item.opaque()
    return [item.b.op(ops.conv, *item.inputs[:3], **_conv_attrs(item, rank))]


def import_conv_transpose(item: NodeImport) -> Sequence[Value | None]:
    """Imports ConvTranspose; the pads behind `auto_pad` and `output_shape` become explicit."""
    rank = spatial_rank(item)
    if rank is None:
        return item.opaque()
    x, weight = item.require(0), item.require(1)
    sizes, kernel = _spatial(x), _spatial(weight)
    mode = (item.attr("auto_pad") or "NOTSET").lower()
    extra: Sizes = item.attr("output_padding") or (0,) * rank
    wanted: Sizes = item.attr("output_shape") or ()
    attrs: dict[str, Any] = {
        "strides": item.attr("strides") or (1,) * rank,
        "dilations": item.attr("dilations") or (1,) * rank,
        "pads": item.attr("pads") or (0,) * (2 * rank),
        "output_padding": extra,
        "groups": item.attr("group", 1),
    }
    if len(wanted) == rank + 2:  # a form with batch and channels that ONNX Runtime reads too
        wanted = wanted[2:]
    if not wanted and not mode.startswith("same"):
        return [item.b.op(ops.conv_transpose, *item.inputs[:3], **attrs)]
    totals = None if kernel is None else _cut_totals(attrs, kernel, wanted, sizes)
    if totals is not None:
        halves = [total // 2 for total in totals]
        rests = [total - half for total, half in zip(totals, halves, strict=True)]
        upper = mode == "same_upper"
        attrs["pads"] = (*halves, *rests) if upper else (*rests, *halves)
    elif wanted:
        attrs |= {"output_shape": wanted, "auto_pad": mode if mode == "same_upper" else "none"}
    else:
        return item.opaque()
    return [item.b.op(ops.conv_transpose, *item.inputs[:3], **attrs)]


def _cut_totals(
    attrs: dict[str, Any],
    kernel: tuple[DimLike, ...],
    wanted: Sizes,
    sizes: tuple[DimLike, ...] | None,
) -> list[int] | None:
    """Returns how many elements are cut per axis, None when symbolic sizes decide."""
    totals: list[int] = []
    for axis, taps in enumerate(kernel):
        stride = attrs["strides"][axis]
        span = extent(taps, attrs["dilations"][axis]) + attrs["output_padding"][axis]
        if not wanted:
            total = span - stride  # the result has size * stride elements, whatever the size
        elif sizes is None:
            return None
        else:
            total = (sizes[axis] - 1) * stride + span - wanted[axis]
        if not isinstance(total, int) or (total < 0 and wanted):
            return None
        totals.append(max(total, 0))
    return totals


def import_deform_conv(item: NodeImport) -> Sequence[Value | None]:
    """Imports DeformConv."""
    rank = spatial_rank(item)
    if rank is None:
        return item.opaque()
    attrs = _conv_attrs(item, rank) | {"offset_groups": item.attr("offset_group", 1)}
    return [item.b.op(deform.deform_conv, *item.inputs, **attrs)]


def import_causal_conv(item: NodeImport) -> Sequence[Value | None]:
    """Imports CausalConvWithState; com.microsoft's variants beyond the standard stay opaque."""
    extended = item.attr("state_window", 0) or item.attr("channels_last", 0)
    if extended or item.attr("ndim", 1) != 1 or item.attr("dilation", 1) != 1:
        return item.opaque()
    kind = item.attr("activation", "none")
    name = "silu" if kind == "swish" else kind
    return item.b.multi(causal_conv.causal_conv, *item.inputs, activation=name)


def import_fused_conv(item: NodeImport) -> Sequence[Value | None]:
    """Imports com.microsoft FusedConv as conv, an optional sum, and the activation."""
    rank = spatial_rank(item)
    kind = item.attr("activation", "")
    params: tuple[float, ...] = item.attr("activation_params", ())
    if rank is None or kind not in ("", *_ACTIVATIONS):
        return item.opaque()
    out = item.b.op(ops.conv, *item.inputs[:3], **_conv_attrs(item, rank))
    added = item.input(3)
    if added is not None:
        out = item.b.op(arithmetic.add, out, added)
    if not kind:
        return [out]
    spec, names = _ACTIVATIONS[kind]
    return [item.b.op(spec, out, **dict(zip(names, params, strict=False)))]


_ACTIVATIONS = {
    "Relu": (activation.relu, ()),
    "Tanh": (functions.tanh, ()),
    "Sigmoid": (activation.sigmoid, ()),
    "LeakyRelu": (activation.leaky_relu, ("alpha",)),
    "Clip": (activation.clip, ("min", "max")),
    "HardSigmoid": (activation.hard_sigmoid, ("alpha", "beta")),
}

IMPORTS: tuple[Import, ...] = (
    Import("Conv", {1: import_conv}),
    Import("ConvTranspose", {1: import_conv_transpose}),
    Import("DeformConv", {19: import_deform_conv}),
    Import("CausalConvWithState", {27: import_causal_conv}),
    Import("CausalConvWithState", {1: import_causal_conv}, domain="com.microsoft"),
    Import("FusedConv", {1: import_fused_conv}, domain="com.microsoft"),
)
