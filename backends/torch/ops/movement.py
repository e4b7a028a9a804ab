"""Emitters of reshape, transpose, squeeze, unsqueeze, expand, tile, pad, and moves by position."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library import blocks as block_library
from regraft.backends.torch.library import padding, reshaping
from regraft.backends.torch.ops.params import (
    axis_of,
    operand,
    sizes_param,
    static_ints,
    static_sizes,
)
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import blocks, repeating
from regraft.ir.ops import reshaping as ops

_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _emit_reshape(e: EmitContext) -> str:
    x, wanted = e.input(0), e.attr("shape")
    if wanted is None:
        if e.node.output.shape is not None:
            wanted = e.node.output.shape
        else:
            wanted = static_sizes(e, "shape")
    text = None if wanted is None else _shape_text(e, wanted)
    if text is not None:
        return f"{x}.reshape({text})"
    shape = sizes_param(e, "shape")
    return f"{e.helper(reshaping.reshape_to)}({x}, {shape}, {e.attr('allow_zero')})"


def _shape_text(e: EmitContext, shape: tuple[DimLike, ...]) -> str | None:
    """Returns sizes as arguments; at most one, which no value shows, is left to PyTorch as -1."""
    unknown = [dim for dim in shape if not e.graph.sizes.can_read(dim)]
    if len(unknown) > 1 or (unknown and any(dim in (-1, 0) for dim in shape)):
        return None
    if not shape:
        return "()"
    return ", ".join("-1" if dim in unknown else e.size(dim) for dim in shape)


def _emit_transpose(e: EmitContext) -> str:
    x, perm = operand(e, 0), e.attr("perm")
    if perm is None and x.rank is None:
        return f"{e.helper(reshaping.reverse_axes)}({e.input(0)})"
    perm = tuple(range(x.rank or 0))[::-1] if perm is None else perm
    moved = [i for i, axis in enumerate(perm) if i != axis]
    if not moved:
        return e.input(0)
    if len(moved) == 2:
        return f"{e.input(0)}.transpose({moved[0]}, {moved[1]})"
    return f"{e.input(0)}.permute({', '.join(map(str, perm))})"


def _emit_squeeze(e: EmitContext) -> str:
    axes = static_ints(e, "axes")
    if axes is None:
        read = sizes_param(e, "axes")
        return f"{e.input(0)}.squeeze({'' if read is None else f'tuple({read})'})"
    return f"{e.input(0)}.squeeze({axes[0] if len(axes) == 1 else axes})" if axes else e.input(0)


def _emit_unsqueeze(e: EmitContext) -> str:
    axes = static_ints(e, "axes")
    rank = e.node.output.rank
    if axes is None or (rank is None and len(axes) > 1):
        return f"{e.helper(reshaping.insert_axes)}({e.input(0)}, {sizes_param(e, 'axes')})"
    if rank is not None:
        axes = tuple(sorted(axis % rank for axis in axes))
    return e.input(0) + "".join(f".unsqueeze({axis})" for axis in axes)


def _emit_expand(e: EmitContext) -> str:
    x, out = operand(e, 0), e.node.output.shape
    if x.shape is not None and out is not None:
        aligned = (None,) * (len(out) - len(x.shape)) + x.shape
        kept = [have is not None and have == dim for have, dim in zip(aligned, out, strict=True)]
        if all(kept):
            return e.input(0)
        if all(same or e.graph.sizes.can_read(dim) for same, dim in zip(kept, out, strict=True)):
            sizes = ["-1" if same else e.size(dim) for same, dim in zip(kept, out, strict=True)]
            return f"{e.input(0)}.expand({', '.join(sizes)})"
    return f"{e.helper(reshaping.expand_to)}({e.input(0)}, {sizes_param(e, 'shape')})"


def _emit_pad(e: EmitContext) -> str:
    x, mode = operand(e, 0), e.attr("mode")
    pads, axes = static_sizes(e, "pads"), static_ints(e, "axes")
    value = _fill_value(e)
    if pads is not None and x.rank is not None and (axes is not None or e.node.inputs[3] is None):
        where = range(x.rank) if axes is None else [axis % x.rank for axis in axes]
        num = len(where)
        amounts: dict[int, tuple[DimLike, DimLike]] = {
            axis: (pads[i], pads[i + num])
            for i, axis in enumerate(where)
            if (pads[i], pads[i + num]) != (0, 0)
        }
        if not amounts:
            return e.input(0)
        # other modes than `constant` want every axis after the channels
        first = min(amounts) if mode == "constant" else min(2, *amounts)
        pairs = [amounts.get(axis, (0, 0)) for axis in range(x.rank - 1, first - 1, -1)]
        flat = e.sizes([dim for pair in pairs for dim in pair])
        if mode == "constant":
            tail = f", value={value}" if value != "0" else ""
            return f"F.pad({e.input(0)}, {flat}{tail})"
        if first >= 2 and _pads_like_f(x, pairs):
            return f'F.pad({e.input(0)}, {flat}, mode="{_MODES[mode]}")'
    arguments = [e.input(0), str(sizes_param(e, "pads")), str(sizes_param(e, "axes")), repr(mode)]
    return f"{e.helper(padding.pad_axes)}({', '.join([*arguments, value])})"


def _pads_like_f(x: Value, pairs: list[tuple[DimLike, DimLike]]) -> bool:
    """Whether `F.pad` takes these pads in modes other than `constant`."""
    known = all(isinstance(dim, int) and dim >= 0 for pair in pairs for dim in pair)
    return known and x.rank in (3, 4, 5) and x.dtype is not None and x.dtype.is_float


def _fill_value(e: EmitContext) -> str:
    value = e.node.operand("value")
    if value is None:
        return "0"
    return e.graph.number(value) or f"{e.name(value)}.item()"


def _emit_depth_to_space(e: EmitContext) -> str:
    if e.attr("mode") == "CRD":
        return f"F.pixel_shuffle({e.input(0)}, {e.attr('block_size')})"
    return f"{e.helper(block_library.depth_to_space)}({e.input(0)}, {e.attr('block_size')})"


def _emit_space_to_depth(e: EmitContext) -> str:
    if e.attr("mode") == "CRD":
        return f"F.pixel_unshuffle({e.input(0)}, {e.attr('block_size')})"
    return f"{e.helper(block_library.space_to_depth)}({e.input(0)}, {e.attr('block_size')})"


def _emit_reverse_sequence(e: EmitContext) -> str:
    time, batch = (axis_of(operand(e, 0), e.attr(name)) for name in ("time_axis", "batch_axis"))
    call = e.helper(block_library.reverse_rows)
    return f"{call}({e.input(0)}, {e.input(1)}, {time}, {batch})"


def _emit_center_crop_pad(e: EmitContext) -> str:
    call = e.helper(block_library.crop_or_pad)
    return f"{call}({e.input(0)}, {sizes_param(e, 'shape')}, {e.attr('axes')})"


EMITS = (
    Emit(ops.reshape, _emit_reshape),
    Emit(ops.transpose, _emit_transpose),
    Emit(ops.squeeze, _emit_squeeze),
    Emit(ops.unsqueeze, _emit_unsqueeze),
    Emit(repeating.expand, _emit_expand),
    Emit(repeating.tile, lambda e: f"{e.input(0)}.repeat({sizes_param(e, 'repeats')})"),
    Emit(repeating.pad, _emit_pad),
    Emit(blocks.depth_to_space, _emit_depth_to_space),
    Emit(blocks.space_to_depth, _emit_space_to_depth),
    Emit(blocks.reverse_sequence, _emit_reverse_sequence),
    Emit(blocks.center_crop_pad, _emit_center_crop_pad),
)
