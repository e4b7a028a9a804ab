"""Importers of Softmax, LogSoftmax and Hardmax; before opset 13 they flatten to rank 2."""

from __future__ import annotations

import numpy as np

from regraft.frontends.onnx.importer import Import, Importer, NodeImport
from regraft.ir.dims import product
from regraft.ir.graph import Value
from regraft.ir.ops import reduce, reshaping, sizes, slicing, softmax
from regraft.ir.opspec import OpSpec


def _along_axis(spec: OpSpec) -> Importer:
    return lambda item: item.b.op(spec, item.require(0), axis=item.attr("axis", -1))


def _flattened(spec: OpSpec) -> Importer:
    """Normalizes over all axes from `axis` on, as one."""

    def run(item: NodeImport) -> Value:
        x, axis, b = item.require(0), item.attr("axis", 1), item.b
        shape = x.shape
        if shape is None:
            # [prod(head), -1], the sizes taken at run time
            head = b.op(reduce.reduce_prod, b.op(sizes.shape, x, start=0, end=axis), axes=(0,))
            flat_shape = b.op(slicing.concat, head, b.constant(np.array([-1], np.int64)), axis=0)
            flat = b.op(reshaping.reshape, x, flat_shape)
            return b.op(reshaping.reshape, b.op(spec, flat, axis=-1), b.op(sizes.shape, x))
        rank = len(shape)
        if not -rank <= axis <= rank:
            raise item.error(f"axis {axis} is out of range for rank {rank}")
        axis = axis % rank if axis < 0 else axis
        # a tail with one axis larger than 1 needs no reshape
        wide = [i for i in range(axis, rank) if shape[i] != 1]
        if len(wide) <= 1 and axis < rank:
            return b.op(spec, x, axis=wide[0] if wide else axis)
        flat = b.op(reshaping.reshape, x, shape=(product(shape[:axis]), product(shape[axis:])))
        return b.op(reshaping.reshape, b.op(spec, flat, axis=-1), shape=shape)

    return run


def _row(op_type: str, spec: OpSpec) -> Import:
    return Import(op_type, {1: _flattened(spec), 13: _along_axis(spec)})


IMPORTS: tuple[Import, ...] = (
    _row("Softmax", softmax.softmax),
    _row("LogSoftmax", softmax.log_softmax),
    _row("Hardmax", softmax.hardmax),
)
