"""Quantized products of the target level: what ONNX Runtime's CPU kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.quant import compute_dtype
from regraft.ir.ops.shapes import operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type
from regraft.ir.weights import pack_columns, pack_rows, unpack_rows

Array = np.ndarray[Any, Any]

_CODES_AT_ONCE = 1 << 18
"""Codes that are packed at a time: they fit the second-level cache."""


def _infer_integer(node: Node) -> Type:
    found = None if matmul.infer is None else matmul.infer(node)
    return TensorType(DType.F32, found.shape if isinstance(found, TensorType) else None)


def _eval_integer(
    c: Any, a: Array, b: Array, a_scale: Array, b_scale: Array, a_zero: Array, b_zero: Array | None,
    bias: Array | None,
) -> Array:  # fmt: skip
    wide = compute_dtype(c)
    left = a.astype(np.float64) - a_zero.astype(np.float64)
    right = b.astype(np.float64) - (0.0 if b_zero is None else b_zero.astype(np.float64))
    out: Array = np.matmul(left, right).astype(wide) * (a_scale.astype(wide) * b_scale.astype(wide))
    return out if bias is None else out + bias.astype(wide)


def _flops(node: Node) -> Any:
    return None if matmul.flops is None else matmul.flops(node)


matmul_integer_to_float = OpSpec(
    name="ort.matmul_integer_to_float",
    source="com.microsoft MatMulIntegerToFloat-1",
    operands=(
        Operand("a"),  # u8[..., M, K]
        Operand("b"),  # i8[K, N]
        Operand("a_scale"),  # f32
        Operand("b_scale"),  # f32 or f32[N]
        Operand("a_zero_point"),  # u8
        Operand("b_zero_point", optional=True),
        Operand("bias", optional=True),  # f32[N]
    ),
    traits=Trait.PURE | Trait.RAW,
    infer=_infer_integer,
    eval=_eval_integer,
    flops=_flops,
)


def _infer_nbits(node: Node) -> Type:
    (a,) = operands_of(node, 1)
    shape = None if a.shape is None else (*a.shape[:-1], node.attrs["n"])
    return TensorType(a.dtype, shape)


def _eval_nbits(c: Any, a: Array, b: Array, scales: Array, zeros: Array | None) -> Array:
    k, n, bits, group = (c.attrs[name] for name in ("k", "n", "bits", "block_size"))
    blocks = -(-k // group)
    codes = unpack_rows(b.reshape(n, -1), bits, blocks * group).astype(np.float32)
    if zeros is None:
        points = np.full((n, blocks), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        points = unpack_rows(zeros.reshape(n, -1), bits, blocks).astype(np.float32)
    else:
        points = zeros.reshape(n, blocks)
    spread = np.repeat(points, group, 1), np.repeat(scales.reshape(n, blocks), group, 1)
    weight = ((codes - spread[0]) * spread[1])[:, :k]
    return np.matmul(a, weight.T.astype(a.dtype))  # type: ignore[no-any-return]  # of arrays


def _flops_nbits(node: Node) -> Any:
    shape = node.output.shape
    if shape is None:
        return None
    total: Any = 2 * node.attrs["k"]
    for size in shape:
        total = total * size
    return total


matmul_nbits = OpSpec(
    name="ort.matmul_nbits",
    source="com.microsoft MatMulNBits-1",
    operands=(
        Operand("a"),  # f32[..., M, K]
        Operand("b"),  # u8[N, blocks, block_size * bits / 8]
        Operand("scales"),  # f32[N, blocks]
        Operand("zero_points", optional=True),  # u8 packed; 2 ** (bits - 1) without
    ),
    attrs=(
        Attr("k", AttrKind.INT),
        Attr("n", AttrKind.INT),
        Attr("bits", AttrKind.INT),
        Attr("block_size", AttrKind.INT),
        Attr("accuracy_level", AttrKind.INT, 4),  # 4: products of 8-bit integers
    ),
    infer=_infer_nbits,
    eval=_eval_nbits,
    flops=_flops_nbits,
)


def nbits_codes(codes: Array, group: int, bits: int) -> Array:
    """Returns u8[N, blocks, group * bits / 8], codes as `ort.matmul_nbits` takes them.

    Args:
        codes: Integers [K, N], signed ones centred at 0.
        group: Positions of K in a block.
        bits: 2, 4 or 8.
    """
    k, n = codes.shape
    blocks = -(-k // group)
    row_bytes = group * bits // 8
    data = np.zeros((n, blocks * row_bytes), np.uint8)
    step = max(_CODES_AT_ONCE // max(k, 1), 1)
    for first in range(0, n, step):
        part = np.ascontiguousarray(codes[:, first : first + step])
        unsigned = part.view(np.uint8)
        if codes.dtype.name.startswith("int"):  # int2 and int4 of ml_dtypes are no numpy kinds
            unsigned = unsigned + np.uint8(1 << (bits - 1))
        packed = pack_columns(unsigned, bits)
        data[first : first + step, : len(packed)] = packed.T
    return data.reshape(n, blocks, row_bytes)


def nbits_zero_points(zero: Array | None, shape: tuple[int, int], bits: int) -> Array:
    """Returns u8[N * ceil(blocks * bits / 8)], zero points as `ort.matmul_nbits` takes them.

    Args:
        zero: Integers [blocks, N]; None for 0 of unsigned codes.
        shape: Of these.
        bits: 2, 4 or 8.
    """
    if zero is None:
        return pack_rows(np.zeros(shape[::-1], np.uint8), bits).reshape(-1)
    points = np.ascontiguousarray(zero.T).view(np.uint8)
    if zero.dtype.name.startswith("int"):
        points = (points + np.uint8(1 << (bits - 1))) & np.uint8((1 << bits) - 1)
    return pack_rows(points, bits).reshape(-1)
