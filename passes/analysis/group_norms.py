"""Group and instance norms: between two reshapes or over whole channels, affine included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from regraft.ir.constants import is_constant
from regraft.ir.dims import exact_quotient, known_equal
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, reshaping
from regraft.ir.types import static_shape
from regraft.passes.analysis.norms import NormBlock, Scale
from regraft.passes.cleanup.facts import uniform


def join_groups(found: Iterable[NormBlock], taken: set[Node]) -> list[NormBlock]:
    """Returns the norms, those that normalize groups of channels as what they are.

    Args:
        found: Norms of one graph.
        taken: Gains the nodes that joined a norm.
    """
    joined = []
    for block in found:
        block_of_groups = _between_reshapes(block) or _whole_channels(block)
        joined.append(block if block_of_groups is None else block_of_groups)
        taken.update(joined[-1].nodes)
    return joined


def _between_reshapes(block: NormBlock) -> NormBlock | None:
    """A norm without affine of `x` reshaped to [N, G, ...], reshaped back."""
    before = block.input.producer
    if before is None or before.op is not reshaping.reshape or not _is_plain(block):
        return None
    x, grouped = before.inputs[0], block.input.shape
    if x is None or x.shape is None or grouped is None or len(x.shape) < 3 or block.groups:
        return None
    groups = _groups(x, block)
    after = _only_user(block.output)
    channels = x.shape[1]
    if groups is None or not isinstance(channels, int) or channels % groups:
        return None
    if after is None or after.op is not reshaping.reshape or after.outputs[0].shape != x.shape:
        return None
    nodes = (after, *block.nodes, *((before,) if block.input.num_uses == 1 else ()))
    spatial = tuple(range(2 - len(x.shape), 0))
    made = replace(
        block, kind="group_norm", input=x, output=after.outputs[0], axes=spatial, nodes=nodes,
        gain=Scale(), shift=None, groups=groups,
    )  # fmt: skip
    return _with_affine(made)


def _groups(x: Value, block: NormBlock) -> int | None:
    """Returns how many groups of channels each row of `x` is split into."""
    grouped, sizes = block.input.shape or (), x.shape or ()
    lead = grouped[: len(grouped) - len(block.axes)]
    if block.axes != tuple(range(-len(block.axes), 0)):
        return None
    if len(lead) == 2 and known_equal(lead[0], sizes[0]):
        return lead[1] if isinstance(lead[1], int) else None
    if len(lead) == 1:
        groups = exact_quotient(lead[0], sizes[0])
        return groups if isinstance(groups, int) else None
    return None


def _whole_channels(block: NormBlock) -> NormBlock | None:
    """A layer norm over all of [C, *S] or, from rank 4 on, over *S: one group, or one per channel.

    A gain and shift per channel tell it from a layer norm.
    """
    rank = len(block.input.shape or ())
    if block.kind != "layer_norm" or block.is_canonical or rank < 3:
        return None
    channels = (block.input.shape or ())[1]
    if not isinstance(channels, int):
        return None
    spatial = tuple(range(2 - rank, 0))
    if block.axes == (1 - rank, *spatial):
        values = (*block.gain.values, *(() if block.shift is None else block.shift.values))
        if values and all(_is_per_channel(value, rank) for value in values):
            return replace(block, kind="group_norm", axes=spatial, groups=1)
    if block.axes == spatial and rank >= 4 and _is_plain(block):
        return _with_affine(replace(block, kind="instance_norm", gain=Scale(), shift=None))
    return None


def _is_plain(block: NormBlock) -> bool:
    """Returns whether gain and shift change nothing, spelled as constants perhaps."""
    if block.kind not in ("layer_norm", "instance_norm") or block.gain.factor != 1:
        return False
    if any(uniform(value) != 1.0 for value in block.gain.values):
        return False
    return block.shift is None or all(uniform(value) == 0.0 for value in block.shift.values)


def _with_affine(block: NormBlock) -> NormBlock:
    """Takes in a product with, then a sum with constants per channel that follow."""
    rank = len(block.input.shape or ())
    for op in (arithmetic.mul, arithmetic.add):
        user = _only_user(block.output)
        if user is None or user.op is not op or user.outputs[0].shape != block.input.shape:
            continue
        other = user.inputs[1] if user.inputs[0] is block.output else user.inputs[0]
        if other is None or not is_constant(other) or not _is_per_channel(other, rank):
            continue
        scale = Scale(1.0, (other,))
        nodes = (user, *block.nodes)
        if op is arithmetic.mul:
            block = replace(block, gain=scale, nodes=nodes, output=user.outputs[0])
        else:
            block = replace(block, shift=scale, nodes=nodes, output=user.outputs[0])
    return block


def _is_per_channel(value: Value, rank: int) -> bool:
    """Returns whether a constant varies along axis 1 of a tensor of that rank at most."""
    shape = static_shape(value.type)
    if shape is None or len(shape) > rank:
        return False
    return all(size == 1 or axis == 1 for axis, size in enumerate(shape, rank - len(shape)))


def _only_user(value: Value) -> Node | None:
    if value.num_uses != 1:
        return None
    ((user, _),) = value.uses
    return user if isinstance(user, Node) else None
