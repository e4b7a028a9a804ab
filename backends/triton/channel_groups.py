"""What norms of groups of channels ask of a region: which values lie how in a group.

A row of such a region is a group of one image: some channels with all of their planes. What has
an element per channel is read once per plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import norm

MIN_GROUPS = 32
"""Of all images, below which a program each leaves most of a GPU idle. PyTorch's own kernel has a
program per group as well."""
SEPARATE_LAUNCHES = 3
"""Of PyTorch's own norm: statistics, factors per channel, and a kernel that applies those."""
_MIN_RANK, _MIN_CHANNELS = 3, 2

Shape = tuple[DimLike, ...]


def groups_of(nodes: Iterable[Node]) -> int | None:
    """Returns into how many groups nodes split channels: 0 without norms of groups.

    None where they do not agree.
    """
    counts = {node.attrs["groups"] for node in nodes if node.op is norm.group_norm}
    if len(counts) > 1:
        return None
    return int(counts.pop()) if counts else 0


def affine_shape(value: Value) -> Shape | None:
    """Returns [C, 1, ...] of a gain or shift [C] of norms of groups, which all else broadcasts to.

    None of a value that anything else reads too, or norms of images of another rank do.
    """
    ranks = set()
    for user, idx in value.uses:
        if isinstance(user, Graph) or user.op is not norm.group_norm or idx == 0:
            return None
        x = user.inputs[0]
        ranks.add(0 if x is None or x.shape is None else len(x.shape))
    if len(ranks) != 1 or value.shape is None or len(value.shape) != 1:
        return None
    return (*value.shape, *(1,) * (ranks.pop() - 2))


def is_of_groups(node: Node) -> bool:
    """Whether a norm of groups, of one element type, has a size that a kernel can be written of."""
    x, *affine = node.inputs
    if x is None or x.shape is None or len(x.shape) < _MIN_RANK:
        return False
    # of one channel, what has an element per image looks as if it had one per channel
    if not isinstance(x.shape[1], int) or x.shape[1] < _MIN_CHANNELS:
        return False
    return all(
        value is not None and value.dtype is x.dtype and affine_shape(value) is not None
        for value in affine
    )


def are_in_groups(shapes: Sequence[Shape], space: Shape) -> bool:
    """Whether values of a space [B, C, ...] have all of it, channels alone, or one element."""
    ones = (1,) * len(space)
    planes = ones[2:]
    return all(
        shape in (space, ones) or (shape[1:] == (space[1], *planes) and shape[0] in (1, space[0]))
        for shape in shapes
    )
