"""Products with quantized weights as operators of kernels: codes packed, inputs in bytes or floats.

What quantization leaves is `x @ dequantize(codes, scale, zero)`, x itself perhaps rounded to bytes
and dequantized, or `x @ lookup(codes, table, scale)`. A package holds the codes `8 // bits` to a
byte; no weight is unpacked in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.quant import dequantize, lookup, quantize
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]

_WHOLE = 1 << 62
_BYTES = frozenset({DType.I8, DType.U8})
_FLOATS = frozenset({DType.F32, DType.F16, DType.BF16})
BITS = {DType.U4: 4, DType.I4: 4, DType.U2: 2, DType.I2: 2, DType.U8: 8, DType.I8: 8}
DEPTH = {True: 32, False: 16}  # inputs that integer and float matrix units take at a time


def _infer(node: Node) -> TensorType:
    x, codes, scale = node.inputs[:3]
    if x is None or x.shape is None or codes is None or codes.shape is None or scale is None:
        raise AssertionError("a product of few bits is made of operands whose shapes are known")
    return TensorType(x.dtype, (*x.shape[:-1], codes.shape[1]))


low_bit_matmul = OpSpec(
    name="low_bit_matmul",
    source="what a matmul by dequantized codes becomes in a package of kernels",
    operands=(
        Operand("x"),
        Operand("codes"),
        Operand("scale"),
        Operand("zeros", optional=True),
        Operand("table", optional=True),  # what codes stand for
    ),
    attrs=(
        Attr("bits", AttrKind.INT),
        Attr("group", AttrKind.INT),  # inputs that share a scale
        Attr("zero", AttrKind.INT, 0),  # where there are no zeros
        Attr("x_scale", AttrKind.FLOAT, 0.0),  # of the bytes that x is rounded to; 0: it is not
        Attr("x_zero", AttrKind.INT, 0),
        Attr("signed", AttrKind.BOOL, True),  # whether those are i8, else u8
    ),
    traits=Trait.PURE,
    infer=_infer,
)


def pack_weights(module: Module) -> Module:
    """Returns the module, or a copy whose products with quantized weights are `low_bit_matmul`."""
    if not any(_quantized(node) is not None for node in module.graph):
        return module
    module = module.clone()
    packed: dict[Value, Packed] = {}
    for node in list(module.graph):
        weight = _quantized(node)
        if weight is None:
            continue
        if weight.output not in packed:
            pack_matrix = _packed_table if weight.op is lookup else _packed
            packed[weight.output] = pack_matrix(module, weight)
        *operands, settings = packed[weight.output]
        x, given = _inputs(node, weight, settings["group"])
        b = Builder(module.graph, node, node.loc)
        y = b.op(low_bit_matmul, x, *operands, **settings, **given)
        made = node.inputs[0].producer if given and node.inputs[0] is not None else None
        module.graph.replace(node, [y])
        unread = [weight, made, None if made is None else _maker(made.inputs[0])]
        for each in unread:
            if each is not None and not each.output.num_uses:
                module.graph.erase(each)
    return module


def _quantized(node: Node) -> Node | None:
    """Returns the dequantization of a matrix of codes that a product reads, where kernels do."""
    if node.op is not matmul:
        return None
    x, w = node.inputs[:2]
    made = None if w is None else w.producer
    if (
        x is None
        or x.shape is None
        or len(x.shape) < 2
        or made is None
        or made.op not in (dequantize, lookup)
    ):
        return None
    codes, scale, zero = made.inputs[:3]
    if codes is None or codes.rank != 2 or codes.dtype not in BITS or x.dtype not in _FLOATS:
        return None
    if made.op is lookup:
        return made if _fits_table(made, x) else None
    constants = [constant_of(value, _WHOLE) for value in (codes, scale, zero) if value is not None]
    if made.output.dtype is not x.dtype or any(array is None for array in constants):
        return None
    group = _group(made)
    return made if group and (group >= int(_rows(made)) or group % DEPTH[False] == 0) else None


def _fits_table(made: Node, x: Value) -> bool:
    """Whether kernels look codes up: in a table of all of them, scaled in groups of inputs."""
    codes, table, scale = made.inputs[:3]
    group = made.attrs["block_size"]
    if codes is None or table is None or scale is None or codes.dtype is None:
        return False
    known = constant_of(codes, _WHOLE)
    if known is None or codes.dtype not in (DType.U8, DType.U4, DType.U2):
        return False
    size, outputs = known.shape
    return (
        made.output.dtype is x.dtype
        and made.attrs["axis"] % 2 == 0
        and table.shape == (1 << BITS[codes.dtype],)
        and scale.shape == (-(-size // group), outputs)
        and (group >= size or group % DEPTH[False] == 0)
    )


def _rows(weight: Node) -> int:
    codes = constant_of(weight.inputs[0], _WHOLE)
    return 0 if codes is None else int(codes.shape[0])


def _group(weight: Node) -> int:
    """Returns the inputs of a matrix [K, N] that share a scale; 0: they have scales each."""
    scale, axis, block = weight.inputs[1], weight.attrs["axis"], weight.attrs["block_size"]
    is_whole = axis is None or (scale is not None and scale.rank == 0)
    if is_whole or (axis % 2 == 1 and not block):
        return max(1, _rows(weight))
    return int(block) if axis % 2 == 0 else 0


Packed = tuple[Value, Value, Value | None, Value | None, dict[str, int]]
"""Codes, scales, zero points and table as kernels read them, with bits, group and zero."""


def _packed_table(module: Module, weight: Node) -> Packed:
    """Returns codes packed; table and scales stay as they are stored."""
    codes, table, scale = weight.inputs[:3]
    if codes is None or codes.dtype is None:
        raise AssertionError("codes have an element type")
    array, bits = constant_of(codes, _WHOLE), BITS[codes.dtype]
    if array is None or scale is None:
        raise AssertionError("codes are constants, and have scales")
    whole = array.astype(np.uint8)
    stored = whole if bits == 8 else pack(whole, bits)
    b = Builder(module.graph, weight, weight.loc)
    settings = {"bits": bits, "group": min(weight.attrs["block_size"], max(1, len(whole)))}
    return b.constant(stored, name=f"{codes.name or 'codes'}.packed"), scale, None, table, settings


def _packed(module: Module, weight: Node) -> Packed:
    """Returns what kernels read of integers, their scales and zero points."""
    codes, scale, zero = (constant_of(value, _WHOLE) for value in weight.inputs[:3])
    if codes is None or scale is None:
        raise AssertionError("codes and scales are constants")
    source = weight.inputs[0]
    if source is None or source.dtype is None:
        raise AssertionError("codes have an element type")
    group = _group(weight)
    factor = scale.reshape(-1) if scale.ndim < 2 else scale
    point = zero.reshape(-1) if zero is not None and zero.ndim < 2 else zero
    arrays = coded_arrays(codes, factor, point, source.dtype, group)
    b = Builder(module.graph, weight, weight.loc)
    settings = {"bits": BITS[source.dtype], "group": group, "zero": arrays.zero}
    name = source.name or "codes"
    zeros = None if arrays.zeros is None else b.constant(arrays.zeros, name=f"{name}.zeros")
    scales = b.constant(arrays.scale, name=f"{name}.scales")
    return b.constant(arrays.codes, name=f"{name}.packed"), scales, zeros, None, settings


@dataclass(frozen=True, slots=True, eq=False)
class CodedArrays:
    """What kernels read of integers in codes.

    Args:
        codes: Bytes [*b, ceil(K / per byte), N].
        scale: f32 [*b, groups, N].
        zeros: [*b, groups, N], where they are not all the same.
        zero: The zero point where there are none.
    """

    codes: Array
    scale: Array
    zeros: Array | None
    zero: int


def coded_arrays(
    codes: Array, scale: Array, zero: Array | None, dtype: DType, group: int
) -> CodedArrays:
    """Returns codes [*b, K, N] packed, with scales and zero points that are not negative.

    Args:
        codes: Integers of `dtype`.
        scale: What broadcasts to [*b, groups, N].
        zero: The same, or None.
        dtype: Element type of the codes.
        group: Inputs of K that share a scale.
    """
    bits, size = BITS[dtype], codes.shape[-2]
    shift = 0 if bits == 8 or dtype in (DType.U4, DType.U2) else 1 << (bits - 1)
    shape = (*codes.shape[:-2], -(-size // group), codes.shape[-1])
    stored = np.ascontiguousarray(codes)
    if bits < 8:
        stored = pack((codes.astype(np.int8) + np.int8(shift)).view(np.uint8), bits)
    zeros = None
    if zero is not None and np.any(zero):
        kind = np.int8 if dtype is DType.I8 else np.uint8
        full = np.broadcast_to(zero.astype(np.int16) + shift, shape)
        zeros = np.ascontiguousarray(full.astype(kind))
    scales = np.ascontiguousarray(np.broadcast_to(scale.astype(np.float32), shape))
    return CodedArrays(stored, scales, zeros, shift)


def pack(codes: Array, bits: int) -> Array:
    """Returns codes u8[*b, K, N] as bytes [*b, ceil(K / per byte), N], the first lowest."""
    per_byte = 8 // bits
    *rest, size, outputs = codes.shape
    padding = [(0, 0)] * len(rest) + [(0, -size % per_byte), (0, 0)]
    parts = np.pad(codes, padding).reshape(*rest, -1, per_byte, outputs)
    shifts = (np.arange(per_byte, dtype=np.uint8) * bits)[:, None]
    packed: Array = np.bitwise_or.reduce(parts << shifts, axis=-2)
    return packed


def _maker(value: Value | None) -> Node | None:
    return None if value is None else value.producer


def _inputs(node: Node, weight: Node, group: int) -> tuple[Value, dict[str, Any]]:
    """Returns what the product reads, and to which bytes it is rounded where integer units do."""
    x = node.inputs[0]
    if x is None:
        raise AssertionError("a product has two operands")
    made, codes = x.producer, weight.inputs[0]
    is_rounded = made is not None and made.op is dequantize and x.dtype is DType.F32
    if made is None or not is_rounded or codes is None or weight.op is lookup:
        return x, {}
    rounded, quantized = made.inputs[0], _maker(made.inputs[0])
    scale, zero = (constant_of(value) for value in made.inputs[1:3])
    point = constant_of(weight.inputs[2], _WHOLE)
    is_narrow = codes.dtype not in _BYTES
    is_signed = codes.dtype is DType.I8 and (point is None or not np.any(point))
    if (
        rounded is None
        or quantized is None
        or quantized.op is not quantize
        or quantized.attrs["precision"] is not None
        or tuple(quantized.inputs[1:3]) != tuple(made.inputs[1:3])
        or rounded.dtype not in _BYTES
        or scale is None
        or scale.size != 1
        or (made.inputs[2] is not None and (zero is None or zero.size != 1))
        or not (is_narrow or is_signed)
        or (group < _rows(weight) and group % DEPTH[True])
    ):
        return x, {}
    value = quantized.inputs[0]
    if value is None or value.dtype is not DType.F32:
        return x, {}
    offset = 0 if zero is None else int(zero.reshape(()))
    settings = {"x_scale": float(scale.reshape(())), "x_zero": offset}
    return value, {**settings, "signed": rounded.dtype is DType.I8}
