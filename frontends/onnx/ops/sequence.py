"""Importers of sequence operators."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import sequence as ops

_FLOAT = 1  # TensorProto.FLOAT


def _empty(item: NodeImport) -> Value:
    return item.b.op(ops.sequence_empty, dtype=DTYPES[item.attr("dtype", _FLOAT)])


def _split(item: NodeImport) -> Value:
    x = item.require(0)
    axis = int(item.attr("axis", 0))
    if axis < 0 and x.rank is not None:
        axis += x.rank
    operand, static = item.either(1)
    if static is not None and not isinstance(static, tuple):
        operand, static = _sizes_of_parts(item, x, axis, static)
    return item.b.op(
        ops.split_to_sequence, x, operand, split=static, axis=axis,
        keepdims=bool(item.attr("keepdims", 1)),
    )  # fmt: skip


def _sizes_of_parts(
    item: NodeImport, x: Value, axis: int, part: DimLike
) -> tuple[Value | None, tuple[int, ...] | None]:
    """Returns the operand, or the sizes of the parts that a scalar `split` of a known axis makes.

    A list of one size means one part, so a scalar cannot be written as one.
    """
    total = None if x.shape is None else x.shape[axis]
    if not isinstance(total, int) or not isinstance(part, int) or part < 1 or not total:
        return item.input(1), None
    sizes = [min(part, total - start) for start in range(0, total, part)]
    return None, tuple(sizes)


def _concat(item: NodeImport) -> Value:
    return item.b.op(
        ops.concat_from_sequence, item.require(0),
        axis=int(item.attrs["axis"]), new_axis=bool(item.attr("new_axis", 0)),
    )  # fmt: skip


def _map(item: NodeImport) -> Sequence[Value]:
    formals = [ops.item_type(value) for value in item.inputs]
    bodies, captures = item.bodies(["body"], [formals])
    return item.b.node(
        ops.sequence_map, *item.inputs, *captures,
        num_outputs=len(bodies[0].outputs), bodies=bodies, num_captures=len(captures),
    ).outputs  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    Import("SequenceEmpty", {11: _empty}),
    Import("SequenceConstruct", {11: direct(ops.sequence_construct)}),
    Import("SequenceInsert", {11: direct(ops.sequence_insert)}),
    Import("SequenceErase", {11: direct(ops.sequence_erase)}),
    Import("SequenceAt", {11: direct(ops.sequence_at)}),
    Import("SequenceLength", {11: direct(ops.sequence_length)}),
    Import("SplitToSequence", {11: _split}),
    Import("ConcatFromSequence", {11: _concat}),
    Import("SequenceMap", {17: _map}),
)
