"""What a generated kernel can compute, and what that costs: nodes of regions.

Costs are a model of memory and launches on an H200; sizes that run time knows are guessed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from regraft.backends.triton.chain_forms import FLOATS, form_of, number_of, operands_of
from regraft.backends.triton.channel_groups import (
    MIN_GROUPS,
    SEPARATE_LAUNCHES,
    affine_shape,
    are_in_groups,
    groups_of,
    is_of_groups,
)
from regraft.ir.dims import DimLike, bind, known_equal, symbols_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import norm, reduce, response_norm, softmax
from regraft.ir.ops.repeating import expand
from regraft.ir.types import DType

BYTES_PER_S = 4.3e12
"""Of a copy on an H200, read and written."""
FLOPS = 3.0e13
"""Element-wise f32 operations a second, half of the peak."""
LAUNCH_S = 4e-6
GUESSED_SIZE = 128
"""What an axis whose size run time knows is taken to be."""
ROW_LIMIT = 16384
"""Elements of a row that fit into registers; a longer one is read again after each reduction."""
MIN_PLANES = 64
"""Rows of several axes below which a program each leaves most of a GPU idle."""
MAX_OPERANDS = 10
MAX_RESULTS = 4
MAX_NODES = 64

REDUCTIONS = frozenset({
    reduce.reduce_sum, reduce.reduce_mean, reduce.reduce_max, reduce.reduce_min,
    reduce.reduce_sum_square, reduce.reduce_l1, reduce.reduce_l2,
})  # fmt: skip
ROW_OPS = frozenset({
    softmax.softmax, softmax.log_softmax, norm.layer_norm, norm.rms_norm, response_norm.lp_norm,
    norm.group_norm,
})  # fmt: skip

Shape = tuple[DimLike, ...]


def row_shape(value: Value, inside: Container[Node]) -> Shape | None:
    """Returns the shape of a value with all axes: those that nodes inside reduce have size 1."""
    affine = affine_shape(value)
    if affine is not None:
        return affine
    node, shape = value.producer, value.shape
    if node is None or shape is None or node not in inside or not is_dropped(node):
        return shape
    return (*shape, *(1,) * reduced_of(node))


def reduced_of(node: Node) -> int:
    """Returns how many axes a node reduces, which are the last ones: 0 for an element-wise one.

    Of norms of groups these are all but the first, the channels' in part.
    """
    if node.op is norm.group_norm:
        x = node.inputs[0]
        return 0 if x is None or x.shape is None else len(x.shape) - 1
    if node.op in ROW_OPS:
        return 1
    return len(reduce.reduced_axes(node) or ()) if node.op in REDUCTIONS else 0


def reads_of(node: Node) -> list[Value]:
    """Returns the values that a kernel needs for a node; axes and bounds are in its source."""
    if node.op in REDUCTIONS or node.op is expand:
        return [value for value in node.inputs[:1] if value is not None]
    used = node.inputs if node.op in ROW_OPS else operands_of(node)
    return [value for value in used if value is not None and number_of(value) is None]


def is_dropped(node: Node) -> bool:
    """Whether a reduction drops its axis: its result can leave a region, not be used in it."""
    return node.op in REDUCTIONS and not node.attrs["keepdims"]


def takes(node: Node) -> bool:
    """Whether a generated kernel can compute a node."""
    if node.op in REDUCTIONS or node.op in ROW_OPS:
        return _is_of_rows(node)
    if node.op is expand and node.output.dtype in FLOATS:
        return bool(node.output.shape) and all(value.shape is not None for value in reads_of(node))
    if form_of(node) is None or node.output.shape is None or not node.output.shape:
        return False
    return bool(reads_of(node))


def _is_of_rows(node: Node) -> bool:
    x = node.inputs[0]
    if x is None or not x.shape or x.dtype not in FLOATS or node.outputs[0].dtype is not x.dtype:
        return False
    if any(value.num_uses for value in node.outputs[1:]):
        return False
    last = len(x.shape) - 1
    if node.op is norm.group_norm:
        return is_of_groups(node) and guess(x.shape[:1]) * node.attrs["groups"] >= MIN_GROUPS
    if node.op in REDUCTIONS:
        axes = reduce.reduced_axes(node) or ()
        count = len(axes)
        is_last = axes == tuple(range(last + 1 - count, last + 1))
        if not axes or not is_last or x.shape[-count:] == (1,) * count:
            return False
        return count == 1 or (count <= last and guess(x.shape[:-count]) >= MIN_PLANES)
    if x.shape[-1] == 1:
        return False
    if node.op is response_norm.lp_norm and node.attrs["p"] != 2:
        return False
    if node.op in (norm.layer_norm, norm.rms_norm) and node.inputs[1] is None:
        return False
    gains = [value for value in node.inputs[1:] if value is not None]
    return node.attrs["axis"] in (-1, last) and all(
        value.shape == x.shape[-1:] and value.dtype is x.dtype for value in gains
    )


def common_space(shapes: Iterable[Shape]) -> Shape | None:
    """Returns the shape that shapes broadcast to, where sizes are known to agree; else None."""
    space: list[DimLike] = []
    for shape in shapes:
        space[:0] = [1] * (len(shape) - len(space))
        for axis in range(-len(shape), 0):
            if shape[axis] == 1:
                continue
            if space[axis] == 1:
                space[axis] = shape[axis]
            elif not known_equal(space[axis], shape[axis]):
                return None
    return tuple(space)


def guess(shape: Shape) -> int:
    """Returns the estimated number of elements of a shape."""
    sizes = dict.fromkeys((symbol.name for symbol in symbols_of(shape)), GUESSED_SIZE)
    count = 1
    for dim in shape:
        size = bind(dim, sizes)
        count *= max(size, 1) if isinstance(size, int) else GUESSED_SIZE
    return count


def bytes_of(value: Value) -> int:
    """Returns the estimated bytes of a value."""
    return (
        0
        if value.shape is None or value.dtype is None
        else guess(value.shape) * (1 if value.dtype is DType.BOOL else value.dtype.bits // 8)
    )


def columns_of(nodes: Sequence[Node], space: Shape) -> int:
    """Returns how many of the last axes are columns of rows; 0 where nodes do not agree.

    Those are what reductions reduce; without any, as many as all values have or none does. Where
    channels are split into groups, their axis is the first of the columns'.
    """
    groups = groups_of(nodes)
    if groups is None:
        return 0
    counts = {reduced_of(node) for node in nodes} - {0}
    if len(counts) > 1:
        return 0
    inside = set(nodes)
    shapes = [_padded(row_shape(value, inside) or (), space) for value in values_of(nodes)]
    if counts:
        (count,) = counts
        if groups:
            # of one image, a reduction of all of it has a group's columns, and is no group's
            is_of_image = any(reduced_of(n) and n.op is not norm.group_norm for n in nodes)
            is_split = count == len(space) - 1 and are_in_groups(shapes, space)
            return count if is_split and not is_of_image else 0
        return count if _are_together(shapes, space, count) else 0
    # channels of images: rows that are planes, not lines; all else has long lines as they are
    narrow = [shape for shape in shapes if shape[-1] == 1 and shape != (1,) * len(space)]
    count = 1
    while narrow and count < len(space) - 1 and _are_together(shapes, space, count + 1):
        count += 1
    return count


def _padded(shape: Shape, space: Shape) -> Shape:
    return (*(1,) * (len(space) - len(shape)), *shape)


def _are_together(shapes: Sequence[Shape], space: Shape, count: int) -> bool:
    """Whether each shape has all or none of the last axes of a space."""
    kept = (space[-count:], (1,) * count)
    return all(shape[-count:] in kept for shape in shapes)


def is_computable(nodes: Sequence[Node], again: set[Node]) -> bool:
    """Whether one kernel can compute nodes: its shapes, operands and results."""
    if len(nodes) > MAX_NODES:
        return False
    inside = set(nodes)
    shapes = [row_shape(value, inside) for value in values_of(nodes)]
    space = common_space(shape or () for shape in shapes)
    if not space or None in shapes:
        return False
    columns = columns_of(nodes, space)
    if not columns:
        return False
    for node in nodes:
        if is_dropped(node) and any(user in inside for user in node.output.users):
            return False
        x = node.inputs[0]
        is_widened = node.op is expand
        if is_widened and not any(v.shape == node.output.shape == space for v in inputs_of(nodes)):
            return False
        is_reduced = node.op in REDUCTIONS or node.op in ROW_OPS
        if is_reduced and x is not None and (x.shape or ())[-columns:] != space[-columns:]:
            return False
    outputs = outputs_of(nodes, again)
    if len(outputs) > MAX_RESULTS or len(inputs_of(nodes)) > MAX_OPERANDS:
        return False
    if not any(value.dtype in FLOATS for value in (*inputs_of(nodes), *outputs)):
        return False
    if groups_of(nodes):
        return all(value.shape == space for value in outputs)
    return all(_is_whole(row_shape(value, inside) or (), space, columns) for value in outputs)


def seconds_of(nodes: Sequence[Node], again: set[Node]) -> float:
    """Returns the estimated time of a kernel: bytes or operations, and a launch."""
    return max(traffic_of(nodes, again) / BYTES_PER_S, flops_of(nodes) / FLOPS) + LAUNCH_S


def flops_of(nodes: Iterable[Node]) -> int:
    """Returns the estimated operations of nodes."""
    flops = 0
    for node in nodes:
        form = None if node.op in REDUCTIONS | ROW_OPS or node.op is expand else form_of(node)
        x = node.inputs[0] if form is None else node.output
        per_element = 20 if node.op in ROW_OPS else 2 if form is None else form.flops
        flops += per_element * guess(() if x is None or x.shape is None else x.shape)
    return flops


def separate_seconds_of(node: Node) -> float:
    """Returns the estimated time of PyTorch's own operator."""
    if node.op is not norm.group_norm:
        return seconds_of([node], set())
    return separate_traffic_of(node) / BYTES_PER_S + SEPARATE_LAUNCHES * LAUNCH_S


def separate_traffic_of(node: Node) -> int:
    """Returns the bytes that PyTorch's own operator reads and writes."""
    x = node.inputs[0]
    again = bytes_of(x) if node.op is norm.group_norm and x is not None else 0
    return traffic_of([node], set()) + again


def traffic_of(nodes: Sequence[Node], again: set[Node]) -> int:
    """Returns the bytes that a kernel reads and writes."""
    read = sum(map(bytes_of, inputs_of(nodes)))
    written = sum(map(bytes_of, outputs_of(nodes, again)))
    return read * passes_of(nodes) + written


def passes_of(nodes: Sequence[Node], fits: int = ROW_LIMIT) -> int:
    """Returns how often a row is read: once where it fits, else once more per reduction.

    Args:
        nodes: The nodes.
        fits: Elements of a row that fit into registers.
    """
    depths: dict[Node, int] = {}
    width = 0
    for node in nodes:
        before = [depths.get(v.producer, 0) for v in reads_of(node) if v.producer is not None]
        depths[node] = max(before, default=0)
        if node.op in REDUCTIONS or node.op in ROW_OPS:
            x = node.inputs[0]
            row = () if x is None or x.shape is None else x.shape[-reduced_of(node) :]
            width = max(width, guess(row) // (groups_of([node]) or 1))
            depths[node] += 1
    return 1 if width <= fits else 1 + max(depths.values())


def values_of(nodes: Sequence[Node]) -> list[Value]:
    """Returns the operands and results of nodes."""
    return [*inputs_of(nodes), *(node.outputs[0] for node in nodes)]


def inputs_of(nodes: Sequence[Node]) -> list[Value]:
    """Returns what nodes read from outside, numbers aside, by first use."""
    inside = set(nodes)
    found: dict[Value, None] = {}
    for node in nodes:
        for value in reads_of(node):
            if value.producer not in inside:
                found.setdefault(value)
    return list(found)


def outputs_of(nodes: Sequence[Node], again: Container[Node] = ()) -> list[Value]:
    """Returns what is read outside; `again` are nodes that others compute too."""
    inside = set(nodes)
    return [
        node.outputs[0]
        for node in nodes
        if node not in again
        and any(isinstance(user, Graph) or user not in inside for user, _ in node.outputs[0].uses)
    ]


def _is_whole(shape: Shape, space: Shape, columns: int) -> bool:
    """Whether a value has every row of the space: one element of it each, or all columns."""
    padded = _padded(shape, space)
    return padded[:-columns] == space[:-columns] and _are_together([padded], space, columns)
