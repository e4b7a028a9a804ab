"""Ranges of values as tools state them: which destroy a model, and what takes their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg, quant, softmax
from regraft.ir.ops.quant import integer_range
from regraft.ir.types import DType
from regraft.passes.quantization.rewrite import Input, token_input

Array = np.ndarray[Any, Any]

_MASK_RANGE = 5e3
"""What a masked position is lowered by is 1e4 and more; scores stay below a few hundred."""

SMALL_FLOATS = frozenset({DType.F8E4M3FN, DType.F8E5M2, DType.F8E4M3FNUZ, DType.F8E5M2FNUZ})
_WIDE = frozenset({DType.U16, DType.I16})


def stated_ranges(module: Module) -> int:
    """Leaves scores in float; where a tool quantized them, products get a range per row.

    Returns how many were changed.
    """
    pairs = [node for node in module.graph if _is_pair(node)]
    bad = [node for node in pairs if _destroys(node)]
    dynamic = [node for node in module.graph if node.op is quant.dynamic_quantize]
    count = 0
    if bad or dynamic:
        inputs: dict[Value, Input] = {}
        for node in list(module.graph):
            if node.op in (linalg.matmul, linalg.gemm):
                count += _row_ranges(module, node, inputs)
    for node in pairs if bad else ():
        source = None if node.inputs[0] is None else node.inputs[0].producer
        if source is not None and source.inputs[0] is not None:
            module.graph.replace(node, [source.inputs[0]])
            count += 1
    return count


def _is_pair(node: Node) -> bool:
    """Whether a node dequantizes what was quantized just before, and is no weight."""
    x = node.inputs[0] if node.op is quant.dequantize else None
    maker = None if x is None else x.producer
    if maker is None or maker.op is not quant.quantize:
        return False
    return not is_constant(maker.inputs[0]) or _destroys(node)


def _destroys(node: Node) -> bool:
    """Whether a pair rounds what 8 bits do not hold, or in a type without kernels."""
    codes = node.inputs[0]
    maker = None if codes is None else codes.producer
    if codes is None or maker is None or codes.dtype is None:
        return False
    if codes.dtype in _WIDE or codes.dtype in SMALL_FLOATS:
        return True
    x, scale = maker.inputs[0], constant_of(maker.inputs[1])
    if x is not None and x.producer is not None and x.producer.op is softmax.softmax:
        return True
    if scale is None or scale.size != 1 or not codes.dtype.is_integer:
        return False
    low, high = integer_range(codes.dtype)
    return float(scale.reshape(())) * (high - low) >= _MASK_RANGE


def _row_ranges(module: Module, node: Node, inputs: dict[Value, Input]) -> bool:
    """Gives the input of a product with a quantized matrix a range per row."""
    left, right = node.inputs[:2]
    if left is None or right is None or not _is_matrix(right):
        return False
    maker = left.producer
    if maker is None or maker.op is not quant.dequantize or maker.inputs[0] is None:
        return False
    before = maker.inputs[0].producer
    if before is None or before.op not in (quant.quantize, quant.dynamic_quantize):
        return False
    x = before.inputs[0]
    transposed = node.op is linalg.gemm and node.attrs["trans_b"]
    plain = node.op is linalg.matmul or not (node.attrs["trans_a"] or transposed)
    if x is None or not plain or right.shape is None or not isinstance(right.shape[0], int):
        return False
    if x not in inputs:
        inputs[x] = token_input(
            Builder(module.graph, node, node.loc), x, right.shape[0], np.zeros(0, np.int64)
        )
    b = Builder(module.graph, node, node.loc)
    result = b.op(linalg.matmul, inputs[x].value, right)
    result = b.op(arithmetic.mul, result, inputs[x].factor)
    if node.op is linalg.gemm and node.inputs[2] is not None:
        result = b.op(arithmetic.add, result, node.inputs[2])
    module.graph.replace(node, [result])
    return True


def _is_matrix(value: Value) -> bool:
    maker = value.producer
    return (
        maker is not None and maker.op is quant.dequantize and is_constant(maker.inputs[0])
        and value.rank == 2 and not maker.attrs["block_size"]
    )  # fmt: skip


def channel_ranges(module: Module) -> int:
    """Writes scales per channel of values as a product; returns how many."""
    count = 0
    for node in list(module.graph):
        if node.op is not quant.quantize or node.attrs["axis"] is None:
            continue
        x, scale, zero = node.inputs[0], constant_of(node.inputs[1]), constant_of(node.inputs[2])
        if scale is None or x is None or is_constant(x):
            continue
        if node.attrs["block_size"] or x.rank is None or (zero is not None and np.ptp(zero) != 0):
            continue
        shape = [1] * x.rank
        shape[node.attrs["axis"]] = -1
        b = Builder(module.graph, node, node.loc)
        scaled = b.op(arithmetic.mul, x, b.constant((1 / scale).reshape(shape)))
        points = None if zero is None else b.constant(zero.reshape(-1)[0])
        one = b.constant(np.ones((), np.float32))
        codes = b.op(quant.quantize, scaled, one, points, dtype=node.output.dtype)
        module.graph.replace(node, [codes])
        count += 1
    return count
