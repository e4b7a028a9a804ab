"""Emitters of slice, split, concat."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext, Emitted
from regraft.backends.torch.library.slicing import slice_axes
from regraft.backends.torch.ops.params import operand, sizes_param, static_ints, static_sizes
from regraft.ir.dims import DimLike
from regraft.ir.ops import slicing as ops

_HUGE = (1 << 31) - 1  # from here on an end means "all the rest"


def _emit_slice(e: EmitContext) -> str:
    x = operand(e, 0)
    starts, ends = static_sizes(e, "starts"), static_sizes(e, "ends")
    axes, steps = ops.sliced_axes(e.node), static_ints(e, "steps")
    if steps is None and e.node.operand("steps") is None and axes is not None:
        steps = (1,) * len(axes)
    if starts is None or ends is None or axes is None or steps is None or min(steps, default=1) < 1:
        names = ("starts", "ends", "axes", "steps")
        arguments = ", ".join(str(sizes_param(e, name)) for name in names)
        return f"{e.helper(slice_axes)}({e.input(0)}, {arguments})"
    index = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if axis in index:  # an axis cut twice
            text = f"{e.helper(slice_axes)}({e.input(0)}, {e.sizes(starts)}, {e.sizes(ends)}"
            return f"{text}, {axes}, {steps})"
        index[axis] = _range_text(e, start, end, step, None if x.shape is None else x.shape[axis])
    kept = {axis: text for axis, text in index.items() if text != ":"}
    if not kept:
        return e.input(0)
    if min(kept) > 1 and x.rank is not None and set(kept) == set(range(min(kept), x.rank)):
        return f"{e.input(0)}[..., {', '.join(kept[axis] for axis in sorted(kept))}]"
    return f"{e.input(0)}[{', '.join(kept.get(i, ':') for i in range(max(kept) + 1))}]"


def _range_text(
    e: EmitContext, start: DimLike, end: DimLike, step: int, size: DimLike | None
) -> str:
    begins = isinstance(start, int) and (start == 0 or start <= -_HUGE)
    first = "" if begins else e.size(start)
    whole = (isinstance(end, int) and end >= _HUGE) or (size is not None and end == size)
    last = "" if whole else e.size(end)
    return f"{first}:{last}" + (f":{step}" if step != 1 else "")


def _emit_split(e: EmitContext) -> Emitted:
    x, axis, num = operand(e, 0), e.attr("axis"), len(e.node.outputs)
    if num == 1:
        return [e.input(0)]
    sizes = static_sizes(e, "sizes")
    if sizes is None and e.node.operand("sizes") is None:
        if x.shape is not None:
            parts = ops.equal_split(x.shape[axis], num)
            if len(set(parts)) > 1 and all(e.graph.sizes.can_read(part) for part in parts):
                sizes = parts
        if sizes is None:
            return f"{e.input(0)}.chunk({num}, dim={axis})"
    if sizes is not None and len(set(sizes)) == 1:
        return f"{e.input(0)}.chunk({num}, dim={axis})"
    return f"{e.input(0)}.split({sizes_text(e, sizes)}, dim={axis})"


def sizes_text(e: EmitContext, sizes: tuple[DimLike, ...] | None) -> str:
    """Returns the sizes of the parts, read from the operand when they are not static."""
    return str(sizes_param(e, "sizes")) if sizes is None else e.sizes(sizes)


def _emit_concat(e: EmitContext) -> str:
    if len(e.node.inputs) == 1:
        return e.input(0)
    return f"torch.cat(({', '.join(e.inputs)}), dim={e.attr('axis')})"


EMITS = (
    Emit(ops.slice_, _emit_slice),
    Emit(ops.split, _emit_split),
    Emit(ops.concat, _emit_concat),
)
