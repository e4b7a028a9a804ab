"""Writing quantized layers: dequantized codes in place of weights, quantized activations before.

Everything is standard operators in canonical form; `legalize` finds the target's kernels in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, cast, gathering, linalg, quant, reduce, slicing
from regraft.ir.spill import stored
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Weight
from regraft.passes.quantization.coded import Coded, coded
from regraft.passes.quantization.encoding import Encoded
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.ranges import Range
from regraft.passes.quantization.sites import Linear, Table

Array = np.ndarray[Any, Any]

_MAX_BIAS = 1 << 20
"""Outputs of a layer whose bias is computed here."""

_TOKEN_LEVELS = 127
_TOKEN_ZERO = 128


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """A value as the quantized products read it.

    Args:
        value: f32[..., K], equal to the value but for rounding.
        factor: f32[..., 1], what the products have to be multiplied by; None for 1.
        tail: f32[..., T], channels that were left in float, None without any.
    """

    value: Value
    factor: Value | None = None
    tail: Value | None = None


def static_input(b: Builder, x: Value, found: Range, factor: Array | None, tail: Array) -> Input:
    """Returns `x` rounded to one stated range.

    Args:
        b: Where to build.
        x: f32[..., K].
        found: Scale and zero point.
        factor: f32[K], what it is multiplied by before; None for 1.
        tail: i64[T], channels that are also handed on as they are.
    """
    scaled = x if factor is None else b.op(arithmetic.mul, x, b.constant(factor))
    scale, zero = b.constant(np.asarray(found.scale)), b.constant(np.asarray(found.zero_point))
    codes = b.op(quant.quantize, scaled, scale, zero)
    value = b.op(quant.dequantize, codes, scale, zero)
    return Input(value, tail=_tail(b, scaled, tail))


def token_input(b: Builder, x: Value, size: int, tail: Array) -> Input:
    """Returns `x` with every row rounded to its own range: its largest absolute value.

    Rows do not see each other, so that a row's result is the same in every batch.

    Args:
        b: Where to build.
        x: f32[..., K].
        size: K.
        tail: i64[T], channels that are handed on as they are, and not rounded.
    """
    body = x
    if tail.size:
        keep = np.ones(size, np.float32)
        keep[tail] = 0
        body = b.op(arithmetic.mul, x, b.constant(keep))
    spread = b.op(arithmetic.abs_, body)
    top = b.op(reduce.reduce_max, spread, axes=(-1,), keepdims=True)
    least = b.constant(np.asarray(np.finfo(np.float32).tiny))
    top = b.op(arithmetic.max_, top, least)
    unit = b.op(arithmetic.div, body, top)
    scale = b.constant(np.asarray(1 / _TOKEN_LEVELS, np.float32))
    zero = b.constant(np.asarray(_TOKEN_ZERO, np.uint8))
    codes = b.op(quant.quantize, unit, scale, zero)
    return Input(b.op(quant.dequantize, codes, scale, zero), factor=top, tail=_tail(b, x, tail))


def dynamic_input(b: Builder, x: Value) -> Input:
    """Returns `x` rounded to the range of the whole tensor, found at run time."""
    codes, scale, zero = b.multi(quant.dynamic_quantize, x)
    return Input(b.op(quant.dequantize, codes, scale, zero))


def _tail(b: Builder, x: Value, channels: Array) -> Value | None:
    if not channels.size:
        return None
    first, last = int(channels[0]), int(channels[-1])
    if last - first == channels.size - 1:  # neighbours, as `permute-outliers` leaves them
        return b.op(slicing.slice_, x, starts=(first,), ends=(last + 1,), axes=(-1,))
    return b.op(gathering.gather, x, b.constant(channels.astype(np.int64)), axis=-1)


def dequantized(
    b: Builder, name: str, encoded: Encoded | Coded, folder: Path | None, *, per_channel: bool
) -> Value:
    """Returns f32[K, N] as dequantized codes.

    Args:
        b: Where to build.
        name: Of the weight that it was.
        encoded: Codes, scales and zero points.
        folder: For large codes; default: the system's temporary folder.
        per_channel: Whether one group spans all of K, so that scales are per output.
    """
    if isinstance(encoded, Encoded):
        if not encoded.grid.format.is_integer:
            return _looked_up(b, name, encoded, folder)
        encoded = coded(name, encoded, folder, per_channel=per_channel)
    codes = b.weight(f"{name}.codes", encoded.codes)
    zero = None
    if encoded.zero_point is not None:
        zero = _constant(b, f"{name}.zero_points", encoded.zero_point)
    scale = _constant(b, f"{name}.scales", encoded.scale)
    place = {"axis": 1} if per_channel else {"axis": 0, "block_size": encoded.group}
    return b.op(quant.dequantize, codes, scale, zero, **place)


def _constant(b: Builder, name: str, weight: Weight) -> Value:
    """Returns a weight as a value, inline where it is small."""
    if isinstance(weight, ArrayWeight):
        return b.constant(weight.array, name=name)
    return b.weight(name, weight)


def _looked_up(b: Builder, name: str, encoded: Encoded, folder: Path | None) -> Value:
    """Returns f32[K, N] as values of a table, scales stored as the format says."""
    fmt, grid = encoded.grid.format, encoded.grid
    packed = encoded.codes.astype(fmt.dtype.numpy)
    codes = b.weight(f"{name}.codes", stored(packed, folder, (name,)))
    scales, _ = stored_scales(b, name, grid.scale, fmt)
    table = b.constant(np.nan_to_num(np.asarray(fmt.table, np.float32)))
    return b.op(quant.lookup, codes, table, scales, axis=0, block_size=grid.group)


def stored_scales(b: Builder, name: str, scale: Array, fmt: Format) -> tuple[Value, int]:
    """Returns scales as f32, stored as their format says, and the bytes that they take.

    Args:
        b: Where to build.
        name: Of the weight that they belong to.
        scale: f32, what the format can store.
        fmt: The format.
    """
    if fmt.scales == "e8m0":
        kept = b.weight(f"{name}.scales", ArrayWeight(scale.astype(DType.F8E8M0.numpy)))
        return b.op(cast.cast, kept, to=DType.F32), scale.size
    if fmt.scales == "e4m3":
        # one for a matrix, or for each of a stack
        whole = scale.max(axis=(-2, -1), keepdims=scale.ndim > 2) / np.float32(448)
        small = (scale / whole).astype(DType.F8E4M3FN.numpy)
        kept = b.weight(f"{name}.scales", ArrayWeight(small))
        wide = b.op(cast.cast, kept, to=DType.F32)
        return b.op(arithmetic.mul, wide, b.constant(np.asarray(whole))), scale.size
    return b.constant(scale, name=f"{name}.scales"), scale.nbytes


def write_linear(
    module: Module,
    site: Linear,
    source: Input,
    encoded: Encoded | Coded,
    tail: Array | None,
    shift: Array | None,
    folder: Path | None,
    *,
    per_channel: bool,
    held: dict[str, Value] | None = None,
) -> None:
    """Replaces a linear layer, its bias included.

    Args:
        module: The module.
        site: The layer.
        source: Its input.
        encoded: Its weight [K, N].
        tail: f32[T, N], weights of the channels in float.
        shift: f32[N], what is added to the result; None for nothing.
        folder: For large codes; default: the system's temporary folder.
        per_channel: Whether one group spans all of K.
        held: What layers of the same weight that come later in the graph read again, by name.
    """
    last, bias = site.with_bias()
    held = {} if held is None else held
    first = Builder(module.graph, site.node, site.node.loc)
    b = Builder(module.graph, last, site.node.loc)
    weight = held.get(site.name)
    if weight is None:
        weight = dequantized(first, site.name, encoded, folder, per_channel=per_channel)
        held[site.name] = weight
    result = b.op(linalg.matmul, source.value, weight)
    if source.factor is not None:
        result = b.op(arithmetic.mul, result, source.factor)
    if source.tail is not None and tail is not None:
        rows = held.get(f"{site.name}.tail")
        if rows is None:
            made = ArrayWeight(tail, made_from=(site.name,))
            rows = held[f"{site.name}.tail"] = first.weight(f"{site.name}.tail", made)
        result = b.op(arithmetic.add, result, b.op(linalg.matmul, source.tail, rows))
    known = None if bias is None or shift is None else constant_of(bias, _MAX_BIAS)
    if known is not None:  # one addition, which the product's kernel takes in
        bias, shift = b.constant(known + shift, name=f"{site.name}.shifted_bias"), None
    if bias is not None:
        result = b.op(arithmetic.add, result, bias)
    if shift is not None:
        result = b.op(arithmetic.add, result, b.constant(shift))
    module.graph.replace(last, [result])


def write_table(b: Builder, site: Table, codes: Weight, scale: Array) -> Value:
    """Replaces a read of a table by a read of its codes, one scale per row.

    Args:
        b: Builds before the read.
        site: The read.
        codes: i8[V, D].
        scale: f32[V].
    """
    table = b.weight(f"{site.name}.codes", codes)
    scales = b.weight(f"{site.name}.scales", ArrayWeight(scale[:, None]))
    rows = b.op(cast.cast, b.op(gathering.gather, table, site.indices, axis=0), to=DType.F32)
    factor = b.op(gathering.gather, scales, site.indices, axis=0)
    result = b.op(arithmetic.mul, rows, factor)
    if site.table.dtype is not DType.F32:
        result = b.op(cast.cast, result, to=site.table.dtype)
    b.graph.replace(site.node, [result])
    return result
