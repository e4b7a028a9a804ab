"""Parts of a product's channels: what splits and slices take of them."""

from __future__ import annotations

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import slicing


def start_of(node: Node) -> DimLike | None:
    """Returns where a slice of one axis starts, None when only run time knows it."""
    starts = node.static("starts")
    return starts[0] if isinstance(starts, tuple) and len(starts) == 1 else None


def cuts(node: Node, axis: int | None) -> bool:
    """Returns whether a split or slice cuts exactly that axis, which is counted from the end."""
    x = node.inputs[0]
    if x is None or x.rank is None or axis is None:
        return False
    if node.op is slicing.split:
        return bool(node.attrs["axis"] % x.rank == axis + x.rank)
    return slicing.sliced_axes(node) in ((axis,), (axis + x.rank,))


def channels_of(value: Value, node: Node) -> range | None:
    """Returns which places of its operand's axis a part is, None where that is not static.

    Args:
        value: The part, a result of `node`.
        node: A split or slice.
    """
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    if node.op is slicing.split:
        axis = node.attrs["axis"] % len(x.shape)
        start = 0
        for part in node.outputs[: value.index + 1]:
            size = None if part.shape is None else part.shape[axis]
            if not isinstance(size, int):
                return None
            found = range(start, start + size)
            start += size
        return found
    axes = slicing.sliced_axes(node)
    bounds = [node.static(name) for name in ("starts", "ends")]
    if node.operand("steps") is not None or node.attrs.get("steps"):
        bounds.append(node.static("steps"))
    if axes is None or len(axes) != 1 or not all(bounds):
        return None
    size = x.shape[axes[0]]
    numbers = [each[0] for each in bounds]
    if not isinstance(size, int) or not all(isinstance(each, int) for each in numbers):
        return None
    return range(size)[slice(*numbers)]
