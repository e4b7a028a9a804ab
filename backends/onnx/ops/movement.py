"""Emitters of sizes, reshaping, slicing, repeating and block moves."""

from __future__ import annotations

from onnx import TensorProto

from regraft.backends.onnx.emitter import Emit, EmitContext, Emitter, direct
from regraft.ir.dims import Dim, DimLike, Shape, bounds, exactdiv, known_equal, product
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Node
from regraft.ir.ops import blocks, repeating, reshaping, sizes, slicing
from regraft.ir.types import DType


def _shape(e: EmitContext) -> None:
    start, end = e.node.attrs["start"], e.node.attrs["end"]
    e.emit("Shape", e.inputs, start=start or None, end=end)


def _shape_opset(node: Node) -> int:
    return 15 if node.attrs["start"] or node.attrs["end"] is not None else 13


# -- reshape ------------------------------------------------------------------------------------


def reshape_target(x: Shape | None, shape: Shape) -> tuple[Shape, bool]:
    """Returns ONNX sizes (0 copies, -1 the rest) and whether `allowzero` must be set.

    Copies and the rest stand in for symbolic sizes only where that is exact for every binding: the
    rest next to sizes that are never 0, and no size that may be 0 where it would be read as a copy.
    A Dim in the result has to be computed at run time.
    """
    if -1 in shape:
        return shape, False
    copied = {
        i
        for i, dim in enumerate(shape)
        if (isinstance(dim, Dim) or dim == 0)
        and x is not None and i < len(x) and known_equal(dim, x[i])
    }  # fmt: skip
    to_compute = [i for i, dim in enumerate(shape) if isinstance(dim, Dim) and i not in copied]
    empty = {i for i, dim in enumerate(shape) if _may_be_zero(dim)}
    rest = -1
    if x is not None:
        to_compute = [i for i in to_compute if not _is_lost(x, shape, i)]
    if not empty and to_compute:
        # the least plain size is the one not to compute; of equals the last
        rest = max(to_compute, key=lambda i: (not _is_symbol(shape[i]), i))
    elif len(empty) == 1 and not empty.isdisjoint(to_compute):
        (rest,) = empty
    if rest < 0 and not empty <= copied:
        return shape, True
    return tuple(0 if i in copied else -1 if i == rest else d for i, d in enumerate(shape)), False


def _is_lost(x: Shape, shape: Shape, idx: int) -> bool:
    """Whether a size would come back as another one where a reader divides it out.

    It is known from elsewhere then, as by what the result is added to, and is worth computing.
    """
    others = product(dim for i, dim in enumerate(shape) if i != idx)
    return not known_equal(exactdiv(product(x), others), shape[idx])


def _may_be_zero(dim: DimLike) -> bool:
    lo, _ = bounds(dim)
    return lo is None or lo <= 0


def _is_symbol(dim: DimLike) -> bool:
    return isinstance(dim, Dim) and dim.as_symbol() is not None


def _reshape(e: EmitContext) -> None:
    x, shape = e.node.inputs[0], e.node.attrs["shape"]
    if shape is None:
        e.emit("Reshape", e.inputs, allowzero=1 if e.node.attrs["allow_zero"] else None)
        return
    target, allow_zero = reshape_target(None if x is None else x.shape, shape)
    e.emit("Reshape", [e.name(x), e.ints(target)], allowzero=1 if allow_zero else None)


def _reshape_opset(node: Node) -> int:
    shape = node.attrs["shape"]
    if shape is None:
        return 14 if node.attrs["allow_zero"] else 13
    x = node.inputs[0]
    return 14 if reshape_target(None if x is None else x.shape, shape)[1] else 13


# -- other reshaping ----------------------------------------------------------------------------


def _with_axes(op_type: str) -> Emitter:
    def run(e: EmitContext) -> None:
        x, axes = e.name(e.node.inputs[0]), e.param("axes")
        e.emit(op_type, [x, axes] if axes else [x])

    return run


# -- slicing ------------------------------------------------------------------------------------


def _slice(e: EmitContext) -> None:
    names = [e.param(name) for name in ("starts", "ends", "axes", "steps")]
    dtypes = {v.dtype for v in e.node.inputs[1:] if v is not None}
    if DType.I32 in dtypes:
        # the four have one type, and the static ones are i64
        for i, value in enumerate([*e.node.inputs[1:], None, None, None][:4]):
            if value is not None and value.dtype is DType.I32:
                names[i] = e.op("Cast", names[i], to=TensorProto.INT64)
    if e.node.attrs["steps"] is not None and set(e.node.attrs["steps"]) == {1}:
        names[3] = ""
    while names and not names[-1]:
        names.pop()
    e.emit("Slice", [e.name(e.node.inputs[0]), *names])


def _split(e: EmitContext) -> None:
    x, parts = e.node.inputs[0], e.node.attrs["sizes"]
    outputs = [e.name(value) for value in e.node.outputs]
    axis, count = e.node.attrs["axis"], len(outputs)
    if parts is None and e.node.inputs[1] is not None:
        e.emit("Split", e.inputs, outputs, axis=axis)
        return
    equal = parts is None or all(part == parts[0] for part in parts)
    if equal and (parts is None or isinstance(parts[0], Dim)):
        num = count if e.opset >= 18 else None
        e.emit("Split", [e.name(x)], outputs, axis=axis, num_outputs=num)
        return
    e.emit("Split", [e.name(x), e.ints(parts)], outputs, axis=axis)


# -- repeating ----------------------------------------------------------------------------------


def _expand(e: EmitContext) -> None:
    x, shape = e.node.inputs[0], e.node.attrs["shape"]
    if shape is None:
        e.emit("Expand", e.inputs)
        return
    target = list(shape)
    if x is not None and x.shape is not None:
        offset = len(shape) - len(x.shape)
        for i, dim in enumerate(x.shape):
            # 1 keeps the size of the data: nothing to compute
            if offset + i >= 0 and known_equal(dim, target[offset + i]):
                target[offset + i] = 1
    e.emit("Expand", [e.name(x), e.ints(target)])


def _tile(e: EmitContext) -> None:
    e.emit("Tile", [e.name(e.node.inputs[0]), e.param("repeats")])


def _full_pads(node: Node) -> tuple[DimLike, ...] | None:
    """Returns the pads of all axes where they are static, None where they are given as they are.

    ONNX Runtime moves transpositions past a Pad as if it had no axes of its own.
    """
    pads, axes, x = node.attrs["pads"], node.attrs["axes"], node.inputs[0]
    if pads is None or axes is None or x is None or x.rank is None:
        return None
    full: list[DimLike] = [0] * (2 * x.rank)
    for i, axis in enumerate(axes):
        full[axis % x.rank] = pads[i]
        full[axis % x.rank + x.rank] = pads[i + len(axes)]
    return tuple(full)


def _pad(e: EmitContext) -> None:
    full = _full_pads(e.node)
    value = e.name(e.node.operand("value"))
    names = [e.param("pads"), value, e.param("axes")] if full is None else [e.ints(full), value]
    while not names[-1]:
        names.pop()
    e.emit("Pad", [e.name(e.node.inputs[0]), *names], mode=e.node.attrs["mode"])


def _pad_opset(node: Node) -> int:
    if node.attrs["mode"] == "wrap":
        return 19
    has_axes = node.attrs["axes"] is not None or node.operand("axes") is not None
    return 18 if has_axes and _full_pads(node) is None else 13


# -- blocks -------------------------------------------------------------------------------------


def _space_to_depth(e: EmitContext) -> None:
    x, block = e.node.inputs[0], e.node.attrs["block_size"]
    if e.node.attrs["mode"] == "DCR":
        e.emit("SpaceToDepth", e.inputs, blocksize=block)
        return
    # the mode came with opset 28: before it, channels (block, block, C) become (C, block, block)
    out = e.node.output.shape
    if x is None or x.shape is None or out is None:
        raise UnsupportedError("space_to_depth in CRD mode needs a known shape below opset 28")
    moved = e.op("SpaceToDepth", e.name(x), blocksize=block)
    split = e.op("Reshape", moved, e.ints((out[0], block * block, x.shape[1], *out[2:])))
    split = e.op("Transpose", split, perm=(0, 2, 1, 3, 4))
    e.emit("Reshape", [split, e.ints(out)])


def _center_crop_pad(e: EmitContext) -> None:
    names = [e.name(e.node.inputs[0]), e.param("shape")]
    e.emit("CenterCropPad", names, axes=e.node.attrs["axes"])


EMITS: tuple[Emit, ...] = (
    Emit(sizes.shape, {13: _shape}, _shape_opset),
    Emit(sizes.size, {13: direct("Size")}),
    Emit(reshaping.reshape, {13: _reshape}, _reshape_opset),
    Emit(reshaping.transpose, {13: direct("Transpose", "perm")}),
    Emit(reshaping.squeeze, {13: _with_axes("Squeeze")}),
    Emit(reshaping.unsqueeze, {13: _with_axes("Unsqueeze")}),
    Emit(slicing.slice_, {13: _slice}),
    Emit(slicing.split, {13: _split}),
    Emit(slicing.concat, {13: direct("Concat", "axis")}),
    Emit(repeating.expand, {13: _expand}),
    Emit(repeating.tile, {13: _tile}),
    Emit(repeating.pad, {13: _pad}, _pad_opset),
    Emit(blocks.depth_to_space, {13: direct("DepthToSpace", "mode", blocksize="block_size")}),
    Emit(blocks.space_to_depth, {13: _space_to_depth}),
    Emit(blocks.reverse_sequence, {13: direct("ReverseSequence", "time_axis", "batch_axis")}),
    Emit(blocks.center_crop_pad, {18: _center_crop_pad}),
)
