"""Tables of small integers for ONNX Runtime: rows are picked and dequantized by one kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import gathering, quant
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.rewrite import LocalRule, Reject, Rewriter
from regraft.ir.types import TensorType, Type
from regraft.ir.weights import pack_rows, unpack_rows

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
_MIN_BLOCK = 16


def _infer(node: Node) -> Type:
    data, indices, scales = node.inputs[:3]
    if data is None or indices is None or scales is None or indices.shape is None:
        return TensorType(None if scales is None else scales.dtype, None)
    return TensorType(scales.dtype, (*indices.shape, node.attrs["width"]))


def _eval(c: Any, data: Array, indices: Array, scales: Array, zeros: Array | None) -> Array:
    bits, group, width = (c.attrs[name] for name in ("bits", "block_size", "width"))
    picked = indices.astype(np.int64)
    codes = unpack_rows(data[picked].reshape(-1, data.shape[1]), bits, width).astype(np.float32)
    scale = scales[picked].reshape(-1, scales.shape[1])
    if zeros is None:
        points = np.full(scale.shape, 1 << (bits - 1), np.float32)
    else:
        rows = zeros[picked].reshape(-1, zeros.shape[1])
        points = unpack_rows(rows, bits, scale.shape[1]).astype(np.float32)
    steps, middle = (np.repeat(each, group, 1)[:, :width] for each in (scale, points))
    return ((codes - middle) * steps).reshape(*indices.shape, width)  # type: ignore[no-any-return]


gather_block_quantized = OpSpec(
    name="ort.gather_block_quantized",
    source="com.microsoft GatherBlockQuantized-1",
    operands=(
        Operand("data"),  # u8[V, D * bits / 8]
        Operand("indices"),
        Operand("scales"),  # f32[V, blocks]
        Operand("zero_points", optional=True),  # u8 packed; 2 ** (bits - 1) without
    ),
    attrs=(
        Attr("bits", AttrKind.INT),
        Attr("block_size", AttrKind.INT),
        Attr("width", AttrKind.INT),
    ),
    infer=_infer,
    eval=_eval,
)


def _picked(value: Value | None) -> tuple[Value, Value] | None:
    """Returns the constant table and the indices that a value is rows of."""
    maker = None if value is None else value.producer
    if maker is None or maker.op is not gathering.gather or maker.attrs["axis"] != 0:
        return None
    table, indices = maker.inputs[:2]
    if table is None or indices is None or table.rank != 2 or not is_constant(table):
        return None
    return table, indices


def gather_blocks(node: Node, rw: Rewriter) -> bool | Reject:
    """Picks rows of codes below 8 bits, which no other kernel picks, or of 8 bits in blocks."""
    group = node.attrs["block_size"]
    found = [_picked(value) for value in node.inputs[:3]]
    codes, scales, zeros = found
    if not group or codes is None:
        return False
    if scales is None or any(each is not None and each[1] is not codes[1] for each in found):
        return Reject("codes and scales are not rows of constants at the same indices")
    if group < _MIN_BLOCK or group & (group - 1) or node.attrs["axis"] not in (
        -1, (node.output.rank or 0) - 1,
    ):  # fmt: skip
        return Reject("the table is not in blocks of a power of two along its rows")
    arrays = [None if each is None else constant_of(each[0], _ANY_SIZE) for each in found]
    table, steps, points = arrays
    dtype = codes[0].dtype
    if table is None or steps is None or dtype is None or dtype.bits not in (2, 4, 8):
        return Reject("the codes have no 2, 4 or 8 bits")
    if zeros is not None and points is None:
        return Reject("the zero points are not constant")
    signed = not dtype.value.startswith("u")
    middle = 1 << (dtype.bits - 1) if signed else 0
    if points is None and not signed:  # the kernel's default is the middle, ours is 0
        points = np.zeros(steps.shape, np.int16)
    data = pack_rows((table.astype(np.int16) + middle).astype(np.uint8), dtype.bits)
    b = rw.builder(node)
    if points is not None:
        points = pack_rows((points.astype(np.int16) + middle).astype(np.uint8), dtype.bits)
    result = b.op(
        gather_block_quantized, b.constant(data), codes[1], scales[0],
        None if points is None else b.constant(points),
        bits=dtype.bits, block_size=group, width=int(table.shape[1]),
    )  # fmt: skip
    rw.replace(node, result)
    return True


RULES: tuple[LocalRule, ...] = (
    LocalRule("legalize-gather-block-quantized", (quant.dequantize,), gather_blocks),
)
