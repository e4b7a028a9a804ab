"""Importers of com.microsoft's quantized products, tables and QLinear operators.

They come in as what they mean: dequantized operands, the float operator, and its result quantized
where the operator's is. Legalization finds the kernels again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.frontends.onnx.ops.pool import import_average_pool
from regraft.ir.constants import constant_of, weight
from regraft.ir.graph import Value
from regraft.ir.ops import activation, arithmetic, gathering, linalg, quant, slicing, softmax
from regraft.ir.ops import pool as pools
from regraft.ir.types import DType
from regraft.ir.weights import unpack_rows

Array = np.ndarray[Any, Any]

_MICROSOFT = "com.microsoft"
_ANY_SIZE = 1 << 62

_SIGNED = {2: DType.I2, 4: DType.I4, 8: DType.I8}
_UNSIGNED = {2: DType.U2, 4: DType.U4, 8: DType.U8}


def _single(value: Value | None) -> bool:
    return value is not None and value.shape in ((), (1,))


def _whole(item: NodeImport, codes: Value, scale: Value, zero: Value | None) -> Value:
    """Returns codes dequantized by one scale."""
    return item.b.op(quant.dequantize, codes, scale, zero)


def _columns(item: NodeImport, codes: Value, scale: Value, zero: Value | None) -> Value | None:
    """Returns a matrix dequantized by one scale, or one per column; None for other layouts."""
    if _single(scale) and (zero is None or _single(zero)):
        return _whole(item, codes, scale, zero)
    width = None if codes.shape is None else codes.shape[-1:]
    if codes.rank != 2 or scale.shape != width:
        return None
    if zero is not None and _single(zero):  # one zero point beside many scales
        array = constant_of(zero, _ANY_SIZE)
        if array is None or not isinstance(width, tuple) or not isinstance(width[0], int):
            return None
        zero = item.b.constant(np.full(width, array.reshape(()), array.dtype))
    if zero is not None and zero.shape != width:
        return None
    return item.b.op(quant.dequantize, codes, scale, zero, axis=1)


def _product(
    item: NodeImport, left: Value, right: Value | None, bias: Value | None
) -> Sequence[Value]:
    if right is None:
        return item.opaque()
    result = item.b.op(linalg.matmul, left, right)
    return [result if bias is None else item.b.op(arithmetic.add, result, bias)]


def _integer_to_float(item: NodeImport) -> Sequence[Value]:
    a_scale, a_zero = item.require(2), item.input(4)
    if not _single(a_scale) or not (a_zero is None or _single(a_zero)):
        return item.opaque()
    right = _columns(item, item.require(1), item.require(3), item.input(5))
    if right is None:
        return item.opaque()
    left = _whole(item, item.require(0), a_scale, a_zero)
    return _product(item, left, right, item.input(6))


def _dynamic_matmul(item: NodeImport) -> Sequence[Value]:
    right = _columns(item, item.require(1), item.require(2), item.input(3))
    if right is None:
        return item.opaque()
    left = _whole(item, *item.b.multi(quant.dynamic_quantize, item.require(0)))
    return _product(item, left, right, item.input(4))


def _name_of(value: Value | None, default: str) -> str:
    """Returns the name of the weight that a value is."""
    maker = None if value is None else value.producer
    return maker.attrs["name"] if maker is not None and maker.op is weight else default


def _blocked(
    item: NodeImport, codes: Array, points: Array | None, bits: int
) -> tuple[Value, Value | None]:
    """Returns stored codes as values: signed where no zero points are given, whose middle is 0."""
    name = _name_of(item.input(1), "matrix")
    if points is None:
        centred = codes.astype(np.int16) - (1 << (bits - 1))
        return item.b.constant(centred.astype(_SIGNED[bits].numpy), name=name), None
    kind = _UNSIGNED[bits].numpy
    zero = item.b.constant(points.astype(kind), name=f"{name}.zero_points")
    return item.b.constant(codes.astype(kind), name=name), zero


def _nbits(item: NodeImport) -> Sequence[Value]:
    k, n, group = (int(item.attr(name)) for name in ("K", "N", "block_size"))
    bits = int(item.attr("bits", 4))
    stored, scale = (constant_of(item.require(i), _ANY_SIZE) for i in (1, 2))
    zeros = constant_of(item.input(3), _ANY_SIZE)
    odd = item.input(4) is not None or item.attr("weight_prepacked", 0)
    # zero points that are floats (HQQ) or vary have no counterpart in dequantize
    odd = odd or (item.input(3) is not None and (zeros is None or zeros.dtype != np.uint8))
    if odd or bits not in _SIGNED or stored is None or scale is None:
        return item.opaque()
    blocks = -(-k // group)
    codes = np.ascontiguousarray(unpack_rows(stored.reshape(n, -1), bits, k).T)
    points = None if zeros is None else unpack_rows(zeros.reshape(n, -1), bits, blocks).T
    value, zero = _blocked(item, codes, points, bits)
    scales = np.ascontiguousarray(scale.reshape(n, blocks).T)
    right = item.b.op(
        quant.dequantize, value, item.b.constant(scales), zero, axis=0, block_size=group,
        accuracy_level=int(item.attr("accuracy_level", 0)),
    )  # fmt: skip
    return _product(item, item.require(0), right, item.input(5))


def _table(item: NodeImport) -> Sequence[Value]:
    data, indices, scales, zero = (item.input(i) for i in range(4))
    axis = int(item.attr("gather_axis", 0))
    along, group = int(item.attr("quantize_axis", 1)), int(item.attr("block_size", 128))
    codes = constant_of(data, _ANY_SIZE)
    if codes is None or data is None or scales is None or indices is None or not group:
        return item.opaque()
    if axis != 0 or codes.ndim != 2 or along not in (1, -1):
        return item.opaque()
    if data.dtype is DType.U8:
        bits = int(item.attr("bits", 4))
        points = constant_of(zero, _ANY_SIZE)
        width = codes.shape[1] * 8 // bits
        if bits not in _SIGNED or (zero is not None and points is None):
            return item.opaque()
        found = None if points is None else unpack_rows(points, bits, -(-width // group))
        data, zero = _blocked(item, unpack_rows(codes, bits, width), found, bits)
    elif data.dtype not in (DType.I4, DType.U4):
        return item.opaque()
    rows = [
        None if each is None else item.b.op(gathering.gather, each, indices, axis=0)
        for each in (data, scales, zero)
    ]
    last = (rows[0].rank or 0) - 1 if rows[0] is not None else -1
    return [item.b.op(quant.dequantize, *rows, axis=last, block_size=group)]


def _requantized(item: NodeImport, result: Value, scale: Value, zero: Value | None) -> Value:
    dtype = DType.U8 if zero is None else zero.dtype
    return item.b.op(quant.quantize, result, scale, zero, dtype=dtype)


def _binary(op: Any) -> Callable[[NodeImport], Value]:
    def run(item: NodeImport) -> Value:
        left = _whole(item, item.require(0), item.require(1), item.input(2))
        right = _whole(item, item.require(3), item.require(4), item.input(5))
        return _requantized(item, item.b.op(op, left, right), item.require(6), item.input(7))

    return run


def _unary(build: Callable[[NodeImport, Value], Value]) -> Callable[[NodeImport], Value]:
    def run(item: NodeImport) -> Value:
        x = _whole(item, item.require(0), item.require(1), item.input(2))
        return _requantized(item, build(item, x), item.require(3), item.input(4))

    return run


def _pooled(item: NodeImport, x: Value) -> Value:
    inner = NodeImport(item.proto, item.version, item.opset, [x], item.attrs, item.b, item.scope)
    return import_average_pool(inner)


def _channels_last(run: Callable[[NodeImport], Value]) -> Callable[[NodeImport], Any]:
    def checked(item: NodeImport) -> Any:
        return item.opaque() if item.attr("channels_last", 0) else run(item)

    return checked


def _softmax(item: NodeImport, x: Value) -> Value:
    return item.b.op(softmax.softmax, x, axis=int(item.attr("axis", -1)))


def _qlinear_softmax(item: NodeImport) -> Any:
    # before opset 13 all axes from `axis` on are one
    if int(item.attr("opset", 13)) < 13 and int(item.attr("axis", -1)) not in (
        -1, (item.rank(0) or 0) - 1,
    ):  # fmt: skip
        return item.opaque()
    return _unary(_softmax)(item)


def _concat(item: NodeImport) -> Sequence[Value]:
    groups = range(2, len(item.inputs), 3)
    parts = [_whole(item, item.require(i), item.require(i + 1), item.input(i + 2)) for i in groups]
    joined = item.b.op(slicing.concat, *parts, axis=int(item.attr("axis")))
    return [_requantized(item, joined, item.require(0), item.input(1))]


def _gemm(item: NodeImport) -> Sequence[Value]:
    if not _single(item.require(4)) or item.attr("transA", 0):
        return item.opaque()
    a = _whole(item, item.require(0), item.require(1), item.input(2))
    b = _whole(item, item.require(3), item.require(4), item.input(5))
    bias = item.input(6)
    if bias is not None:  # i32 in steps of both scales
        step = item.b.op(arithmetic.mul, item.require(1), item.require(4))
        bias = _whole(item, bias, step, None)
    result = item.b.op(
        linalg.gemm, a, b, bias, alpha=item.attr("alpha", 1.0),
        trans_b=bool(item.attr("transB", 0)),
    )  # fmt: skip
    scale = item.input(7)
    return [result if scale is None else _requantized(item, result, scale, item.input(8))]


def _contrib(op_type: str, run: Callable[[NodeImport], Any]) -> Import:
    return Import(op_type, {1: run}, domain=_MICROSOFT)


IMPORTS: tuple[Import, ...] = (
    _contrib("MatMulIntegerToFloat", _integer_to_float),
    _contrib("DynamicQuantizeMatMul", _dynamic_matmul),
    _contrib("MatMulNBits", _nbits),
    _contrib("GatherBlockQuantized", _table),
    _contrib("QLinearAdd", _binary(arithmetic.add)),
    _contrib("QLinearMul", _binary(arithmetic.mul)),
    _contrib("QLinearSigmoid", _unary(lambda i, x: i.b.op(activation.sigmoid, x))),
    _contrib(
        "QLinearLeakyRelu",
        _unary(lambda i, x: i.b.op(activation.leaky_relu, x, alpha=i.attr("alpha", 0.01))),
    ),
    _contrib("QLinearAveragePool", _channels_last(_unary(_pooled))),
    _contrib(
        "QLinearGlobalAveragePool",
        _channels_last(_unary(lambda i, x: i.b.op(pools.global_average_pool, x))),
    ),
    _contrib("QLinearSoftmax", _qlinear_softmax),
    _contrib("QLinearConcat", _concat),
    _contrib("QGemm", _gemm),
)
