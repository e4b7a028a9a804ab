"""Mixtures of experts whose matrices are codes as operators of kernels, which unpack them.

What quantization leaves is `moe` of `dequantize(codes, scale, zero)` or `lookup(codes, table,
scale)`, of a stack of matrices or of one per expert. A package holds the codes packed, each
expert's as `low_bit_matmul` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.backends.triton.expert_emits import mixture_misfit
from regraft.backends.triton.low_bit import BITS, DEPTH, coded_arrays
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, cast, reshaping, slicing
from regraft.ir.ops import moe as moe_ops
from regraft.ir.ops.quant import dequantize, lookup
from regraft.ir.opspec import Attr, AttrKind, Operand
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]

_WHOLE = 1 << 62
_SCALE_TYPES = (DType.F32, DType.F16, DType.BF16)
_X, _UP, _DOWN, _GATE = 0, 2, 3, 4


def _infer(node: Node) -> TensorType:
    x, down = node.inputs[_X], node.inputs[_DOWN]
    if x is None or x.shape is None or down is None or down.shape is None:
        raise AssertionError("a mixture of codes is made of operands whose shapes are known")
    return TensorType(x.dtype, (*x.shape[:-1], down.shape[2]))


low_bit_moe = replace(
    moe_ops.moe,
    name="low_bit_moe",
    source="what a mixture of experts in codes becomes in a package of kernels",
    operands=(
        *moe_ops.moe.operands,  # up, down and gate are codes [E, ceil(in / per byte), out]
        Operand("up_scale"),
        Operand("up_zeros", optional=True),
        Operand("gate_scale", optional=True),
        Operand("gate_zeros", optional=True),
        Operand("hidden_table", optional=True),  # what codes of up and gate stand for
        Operand("down_scale"),
        Operand("down_zeros", optional=True),
        Operand("down_table", optional=True),
    ),
    attrs=(
        *moe_ops.moe.attrs,
        Attr("hidden_coding", AttrKind.INTS),  # bits, group, zero point of up and gate
        Attr("down_coding", AttrKind.INTS),
    ),
    axes=None,
    infer=_infer,
    eval=None,
    flops=None,
    body=None,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Coded:
    """The matrices [E, in, out] of a layer's experts.

    Args:
        codes: [E, in, out], as they are stored in the model.
        scale: [E, groups, out], or what broadcasts to that.
        zero: Like `scale`.
        table: What codes stand for.
        dtype: Of the codes.
        group: Inputs that share a scale.
    """

    codes: Array
    scale: Array
    zero: Array | None
    table: Array | None
    dtype: DType
    group: int


def pack_experts(module: Module) -> Module:
    """Returns the module, or a copy whose mixtures of codes are `low_bit_moe`."""
    if not any(_coded_layer(node) for node in module.graph):
        return module
    module = module.clone()
    for node in list(module.graph):
        found = _coded_layer(node)
        if found is None:
            continue
        up, down, gate = found
        b = Builder(module.graph, node, node.loc)
        operands = [*node.inputs, *[None] * (len(moe_ops.moe.operands) - len(node.inputs))]
        stored = _stored(b, node, _UP, up)
        gates = (None,) * 4 if gate is None else _stored(b, node, _GATE, gate)[:4]
        downs = _stored(b, node, _DOWN, down)
        operands[_UP], operands[_GATE], operands[_DOWN] = stored[0], gates[0], downs[0]
        y = b.op(
            low_bit_moe, *operands, *stored[1:3], *gates[1:3], stored[3], *downs[1:4],
            **node.attrs, hidden_coding=stored[4], down_coding=downs[4],
        )  # fmt: skip
        sources = [node.inputs[idx] for idx in (_UP, _GATE, _DOWN) if node.inputs[idx] is not None]
        module.graph.replace(node, [y])
        for value in sources:
            _erase_unread(value)
    return module


def _erase_unread(value: Value | None) -> None:
    """Erases what made a value, for as long as nothing else reads it."""
    node = None if value is None else value.producer
    if node is None or node.graph is None or any(result.num_uses for result in node.outputs):
        return
    operands = list(node.inputs)
    node.graph.erase(node)
    for operand in operands:
        _erase_unread(operand)


def _coded_layer(node: Node) -> tuple[_Coded, _Coded, _Coded | None] | None:
    """Returns up, down and gate of a mixture that kernels take in codes."""
    if node.op is not moe_ops.moe or mixture_misfit(node):
        return None
    x = node.inputs[_X]
    if x is None or x.shape is None:
        return None
    up, down, gate = (_coded(value, x.dtype) for value in _matrices(node))
    if up is None or down is None:
        return None
    if node.inputs[_GATE] is None:
        return up, down, None
    if gate is None or not _is_alike(up, gate):
        return None
    return up, down, gate


def _matrices(node: Node) -> list[Value | None]:
    return [node.inputs[idx] for idx in (_UP, _DOWN, _GATE)]


def _is_alike(up: _Coded, gate: _Coded) -> bool:
    """Whether one kernel unpacks both."""
    same_table = (
        gate.table is None
        if up.table is None
        else gate.table is not None and np.array_equal(up.table, gate.table, equal_nan=True)
    )
    has_zeros = [each.zero is not None and bool(np.any(each.zero)) for each in (up, gate)]
    return (
        same_table
        and has_zeros[0] == has_zeros[1]
        and (up.dtype, up.group, up.codes.shape) == (gate.dtype, gate.group, gate.codes.shape)
    )


def _coded(value: Value | None, dtype: DType | None) -> _Coded | None:
    """Returns the codes of matrices [E, out, in], where kernels unpack them."""
    leaves = _leaves(value, is_turned=False)
    if not leaves:
        return None
    parts = [_coded_part(node, is_turned, dtype) for node, is_turned in leaves]
    known = [part for part in parts if part is not None]
    first = known[0] if known else None
    if first is None or len(known) < len(parts):
        return None
    for part in known[1:]:
        is_alike = _is_alike(first, part) and (first.zero is None) == (part.zero is None)
        if not is_alike or part.scale.shape[1:] != first.scale.shape[1:]:
            return None
    if len(known) == 1:
        return first
    zeros = [part.zero for part in known if part.zero is not None]
    return replace(
        first,
        codes=np.concatenate([part.codes for part in known]),
        scale=np.concatenate([part.scale for part in known]),
        zero=np.concatenate(zeros) if zeros else None,
    )


def _leaves(value: Value | None, *, is_turned: bool) -> list[tuple[Node, bool]]:
    """Returns the dequantizations that matrices are stacked of, and whether they lie [in, out]."""
    node = None if value is None else value.producer
    if value is None or node is None or value.rank is None:
        return []
    if node.op in (dequantize, lookup):
        return [(node, is_turned)]
    last = (value.rank - 1, value.rank - 2)
    if node.op is reshaping.transpose and node.attrs["perm"] == (*range(value.rank - 2), *last):
        return _leaves(node.inputs[0], is_turned=not is_turned)
    if node.op is reshaping.unsqueeze and node.attrs["axes"] == (0,) and value.rank == 3:
        return _leaves(node.inputs[0], is_turned=is_turned)
    if node.op is not slicing.concat or node.attrs["axis"] not in (0, -3) or value.rank != 3:
        return []
    parts = [_leaves(part, is_turned=is_turned) for part in node.inputs]
    return [leaf for part in parts for leaf in part] if all(parts) else []


def _coded_part(node: Node, is_turned: bool, dtype: DType | None) -> _Coded | None:
    """Returns the codes of one dequantization of [out, in] or [experts, out, in]."""
    codes, *others = (_number(value) for value in node.inputs[:3])
    stored = node.inputs[0]
    if codes is None or codes.ndim not in (2, 3) or stored is None or stored.dtype not in BITS:
        return None
    if node.output.dtype is not dtype or any(
        array is None for array, value in zip(others, node.inputs[1:3], strict=False) if value
    ):
        return None
    is_table = node.op is lookup
    table, scale = others[:2] if is_table else (None, others[0])
    zero = None if is_table or len(others) < 2 else others[1]
    if scale is None:
        return None
    bits = BITS[stored.dtype]
    if is_table and (
        stored.dtype in (DType.I8, DType.I4, DType.I2)
        or table is None
        or table.shape != (1 << bits,)
    ):
        return None
    inputs, outputs = (-2, -1) if is_turned else (-1, -2)
    size = codes.shape[inputs]
    axis, block = node.attrs["axis"], node.attrs["block_size"]
    axis = None if axis is None or scale.ndim == 0 else axis % codes.ndim - codes.ndim
    if axis == inputs and block:
        group = min(block, size)
    elif axis is None or (axis in (outputs, -3) and not block):
        group = size
        shape = [1] * codes.ndim
        if axis is not None:
            shape[axis] = -1
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape if zero.ndim else [1] * codes.ndim)
    else:
        return None
    if not group or (group < size and group % DEPTH[False]):
        return None

    def turned(array: Array) -> Array:
        whole = array if array.ndim == 3 else array[None]
        return whole if is_turned else whole.swapaxes(1, 2)

    full = (codes.shape[0] if codes.ndim == 3 else 1, -(-size // group), codes.shape[outputs])
    scales = np.broadcast_to(turned(scale), full)
    zeros = None if zero is None else np.broadcast_to(turned(zero), full)
    return _Coded(turned(codes), scales, zeros, table, stored.dtype, group)


def _number(value: Value | None) -> Array | None:
    """Returns a constant, or scales that are stored as small floats: cast, times a constant."""
    node = None if value is None else value.producer
    if node is not None and node.op is cast.cast and node.output.dtype in _SCALE_TYPES:
        stored = _number(node.inputs[0])
        return None if stored is None else stored.astype(np.float32)
    if node is not None and node.op is arithmetic.mul:
        left, right = (_number(each) for each in node.inputs[:2])
        if left is None or right is None:
            return None
        product: Array = left * right
        return product
    return constant_of(value, _WHOLE)


_Stored = tuple[Value, Value, Value | None, Value | None, tuple[int, int, int]]
"""Codes, scales, zero points and table as kernels read them, with bits, group and zero."""


def _stored(b: Builder, node: Node, idx: int, coded: _Coded) -> _Stored:
    """Returns the constants of an operand's matrices."""
    arrays = coded_arrays(coded.codes, coded.scale, coded.zero, coded.dtype, coded.group)
    if coded.table is not None:
        arrays = replace(arrays, zero=0, zeros=None)
    name = _name_of(node.inputs[idx]) or f"experts.{moe_ops.moe.operands[idx].name}"
    zeros = None if arrays.zeros is None else b.constant(arrays.zeros, name=f"{name}.zeros")
    table = None if coded.table is None else b.constant(coded.table, name=f"{name}.table")
    return (
        b.constant(arrays.codes, name=f"{name}.packed"),
        b.constant(_narrow(arrays.scale), name=f"{name}.scales"),
        zeros,
        table,
        (BITS[coded.dtype], coded.group, arrays.zero),
    )


def _narrow(scale: Array) -> Array:
    """Returns scales as bf16 where that holds them, as it does powers of two: half the bytes."""
    narrow = scale.astype(DType.BF16.numpy)
    return narrow if np.array_equal(narrow.astype(np.float32), scale) else scale


def _name_of(value: Value | None) -> str | None:
    leaves: Sequence[tuple[Node, bool]] = _leaves(value, is_turned=False)
    codes = leaves[0][0].inputs[0] if len(leaves) == 1 else None
    return None if codes is None else codes.name
