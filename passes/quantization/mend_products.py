"""Products of integers as tools write them, rewritten to products of dequantized operands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    arithmetic,
    cast,
    conv,
    linalg,
    quant,
    quant_linalg,
    reshaping,
    rounding,
)
from regraft.passes.quantization.encoding import grid_of, round_to
from regraft.passes.quantization.formats import INT8
from regraft.passes.quantization.rewrite import Input, token_input

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62


def integer_products(module: Module) -> int:
    """Replaces products of integers whose range is found at run time; returns how many."""
    count = 0
    inputs: dict[Value, Input] = {}
    for node in list(module.graph):
        if node.op in (quant_linalg.matmul_integer, quant_linalg.conv_integer):
            count += _float_product(module, node, inputs)
    return count


def _float_product(module: Module, node: Node, inputs: dict[Value, Input]) -> bool:
    """Rewrites cast(product(dynamic_quantize(x), w)) * (scale of x * scale of w)."""
    codes = node.inputs[0]
    maker = None if codes is None else codes.producer
    found = _scaled(node)
    if maker is None or maker.op is not quant.dynamic_quantize or found is None:
        return False
    x, last, factor, scales, bias = maker.inputs[0], *found
    if x is None or maker.outputs[1] not in scales:
        return False
    matrix = _weight(node, factor)
    if matrix is None:
        return False
    b = Builder(module.graph, last, last.loc)
    if node.op is quant_linalg.conv_integer:
        own = None if bias is None else b.constant(bias)
        wide = b.op(conv.conv, x, matrix.decoded(b), own, **dict(node.attrs))
        module.graph.replace(last, [wide])
        return True
    if matrix.codes.ndim != 2 or matrix.scale.size not in (1, matrix.codes.shape[1]):
        return False
    if x not in inputs:
        first = Builder(module.graph, node, node.loc)
        inputs[x] = token_input(first, x, matrix.codes.shape[0], np.zeros(0, np.int64))
    source = inputs[x]
    stored = columns(b, matrix.codes, matrix.scale, matrix.zero)
    result = b.op(linalg.matmul, source.value, stored)
    if source.factor is not None:
        result = b.op(arithmetic.mul, result, source.factor)
    if bias is not None:
        result = b.op(arithmetic.add, result, b.constant(bias))
    module.graph.replace(last, [result])
    return True


@dataclass(frozen=True, slots=True)
class _Weight:
    """Codes with a scale and a zero point, one or one per output."""

    codes: Array
    scale: Array
    zero: Array | None

    def decoded(self, b: Builder) -> Value:
        """Returns the weight of a convolution in float."""
        wide = self.codes.astype(np.float32)
        if self.zero is not None:
            wide = wide - _rows(self.zero, wide)
        return b.constant((wide * _rows(self.scale, wide)).astype(np.float32))


def _weight(node: Node, factor: Array) -> _Weight | None:
    """Returns the weight of a product of integers, None where it varies."""
    value = node.inputs[1]
    codes, zero = constant_of(value, _ANY_SIZE), constant_of(node.inputs[3], _ANY_SIZE)
    if codes is not None:
        return _Weight(codes, factor.reshape(-1), zero)
    # weights that were no initializers are quantized on every run
    maker = None if value is None else value.producer
    if maker is None or maker.op is not quant.dynamic_quantize:
        return None
    array = constant_of(maker.inputs[0], _ANY_SIZE)
    if array is None:
        return None
    last = array.shape[0] if node.op is quant_linalg.conv_integer else array.shape[-1]
    rows = array.reshape(last, -1).T if node.op is quant_linalg.conv_integer else array
    encoded = round_to(rows, grid_of(rows, INT8, rows.shape[0]))
    kept = encoded.codes.T if node.op is quant_linalg.conv_integer else encoded.codes
    return _Weight(np.ascontiguousarray(kept).reshape(array.shape), encoded.grid.scale[0], None)


def _rows(param: Array, weight: Array) -> Array:
    """Returns one number per output, shaped as a factor of a convolution's weight."""
    wide = param.astype(np.float32)
    return wide if wide.size == 1 else wide.reshape(-1, *(1,) * (weight.ndim - 1))


def columns(b: Builder, codes: Array, scale: Array, zero: Array | None) -> Value:
    """Returns a matrix dequantized with a scale per column, its codes signed.

    Args:
        b: Where to build.
        codes: i8 or u8[K, N].
        scale: f32, one number or N.
        zero: Of the type of the codes, one number or N; None for 0.
    """
    width = codes.shape[1]
    moved = codes.astype(np.int16)
    middle = np.zeros(width, np.int16)
    if zero is not None:
        middle = np.broadcast_to(zero.astype(np.int16).reshape(-1), (width,))
    if codes.dtype == np.uint8:
        moved, middle = moved - 128, middle - 128
    points = b.constant(middle.astype(np.int8)) if middle.any() else None
    scales = np.broadcast_to(scale.astype(np.float32).reshape(-1), (width,))
    return b.op(
        quant.dequantize, b.constant(moved.astype(np.int8)), b.constant(scales.copy()), points,
        axis=1,
    )  # fmt: skip


def _scaled(node: Node) -> tuple[Node, Array, list[Value], Array | None] | None:
    """Returns what makes floats of a product of integers.

    The last product, its constant and its other factors, and the bias f32[N], None without one.
    """
    value, bias = node.output, None
    users = value.users
    if value.num_uses == 1 and len(users) == 1 and users[0].op is arithmetic.add:
        value = users[0].output
        other = users[0].inputs[1] if users[0].inputs[0] is node.output else users[0].inputs[0]
        bias, users = _rounded_bias(other), value.users
        if bias is None:
            return None
    if value.num_uses != 1 or len(users) != 1 or users[0].op is not cast.cast:
        return None
    value = users[0].output
    constant, others = np.ones((), np.float32), list[Value]()
    last: Node | None = None
    while value.num_uses == 1 and len(value.users) == 1 and value.users[0].op is arithmetic.mul:
        node = value.users[0]
        other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
        factors = None if other is None else _factors(other)
        if factors is None:
            break
        constant = constant * factors[0]
        others += factors[1]
        value, last = node.output, node
        if others:
            break
    return None if last is None else (last, constant, others, bias)


def _rounded_bias(value: Value | None) -> Array | None:
    """Returns f32[N] of what older tools add in integers: reshape(cast(floor(bias / scale)))."""
    for op in (reshaping.reshape, cast.cast, rounding.floor, arithmetic.div):
        maker = None if value is None else value.producer
        if maker is None or (maker.op is not op and op is not reshaping.reshape):
            return None
        if maker.op is op:
            value = maker.inputs[0]
    array = constant_of(value, _ANY_SIZE)
    return None if array is None else array.reshape(-1).astype(np.float32)


def _factors(value: Value) -> tuple[Array, list[Value]] | None:
    """Returns a value as a constant and values whose product it is."""
    array = constant_of(value, _ANY_SIZE)
    if array is not None:
        return array, []
    maker = value.producer
    if maker is not None and maker.op is reshaping.reshape and maker.inputs[0] is not None:
        return _factors(maker.inputs[0])
    if maker is not None and maker.op is arithmetic.mul:
        parts = [_factors(each) for each in maker.inputs if each is not None]
        if any(part is None for part in parts):
            return None
        left, right = parts
        return (left[0] * right[0], left[1] + right[1]) if left and right else None
    return np.ones((), np.float32), [value]
