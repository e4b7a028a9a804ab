"""The pass `mend-quantized`: quantized graphs in forms that targets run fast, and right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, weight_of
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import conv, linalg, quant
from regraft.ir.ops.quant import spread
from regraft.ir.types import DType
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.protocol import Context, Contract, Lossy, PassResult
from regraft.passes.quantization.encoding import grid_of, round_to
from regraft.passes.quantization.formats import INT8
from regraft.passes.quantization.mend_products import columns, integer_products
from regraft.passes.quantization.mend_ranges import SMALL_FLOATS, channel_ranges, stated_ranges
from regraft.passes.quantization.rewrite import write_table
from regraft.passes.quantization.rounded_files import round_table
from regraft.passes.quantization.sites import tables

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
_SMALL_BITS = 4


@dataclass(frozen=True, slots=True)
class MendQuantized:
    """Rewrites what quantization tools made into forms that are fast and do not depend on a batch.

    ## What it does
    - Inputs rounded in a range of the whole tensor, found at run time: a range per row.
    - ConvInteger: the float convolution of the dequantized weight.
    - Attention scores, masks and softmaxes in 8 bits, 16-bit and 8-bit-float inputs: in float;
      where one of them is found, inputs of products get a range per row instead.
    - Scales per channel of a value: a product, and one range.
    - Weights in 4-bit floats: the same numbers as 8-bit integers; in 8-bit floats: 8-bit integers.
    - Dequantized weights that no product reads in integers: float.
    - Tables in float beside weights of 4 bits and less: rows in 8 bits.
    - Products by codes that a file keeps in float (`accuracy_level` 0): in 8-bit integers.
    Legalization then writes signed weights and states the level of products.

    ## When it applies
    To quantized modules; floats stay floats.

    ## Example
    ```
    %q, %s, %z = dynamic_quantize(%x)
    %i = matmul_integer(%q, %w, %z)
    %f = cast(%i) {to = f32}
    %y = mul(%f, %scale)                    // %s * the weight's
    ```
    becomes
    ```
    %m = reduce_max(abs(%x)) {axes = (-1)}
    %q = quantize(div(%x, %m), 0.00787, 128)
    %y = mul(matmul(dequantize(%q, 0.00787, 128), dequantize(%w, %scales)), %m)
    ```

    ## Exactness
    Lossy, towards the float model: fewer roundings, and ranges of fewer numbers.
    """

    name: ClassVar[str] = "mend-quantized"
    contract: ClassVar[Contract] = Lossy("output")

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites in place."""
        stats: dict[str, int | float] = {}
        for label, step in _STEPS:
            count = step(module)
            if count:
                stats[label] = count
                Canonicalize().run(module, ctx)
        return PassResult(bool(stats), stats)


def _stored_floats(module: Module) -> int:
    """Stores codes in small floats as integers: of 4 bits exactly, of 8 bits rounded again."""
    count = 0
    for node in list(module.graph):
        codes = node.inputs[0] if node.op is quant.dequantize else None
        array = constant_of(codes, _ANY_SIZE)
        if codes is None or array is None:
            continue
        if codes.dtype is not DType.F4E2M1 and codes.dtype not in SMALL_FLOATS:
            continue
        scale = constant_of(node.inputs[1], _ANY_SIZE)
        if scale is None:
            continue
        b = Builder(module.graph, node, node.loc)
        if codes.dtype is DType.F4E2M1:  # multiples of a half
            doubled = (array.astype(np.float32) * 2).astype(np.int8)
            attrs = {name: node.attrs[name] for name in ("axis", "block_size", "dtype")}
            result = b.op(quant.dequantize, b.constant(doubled), b.constant(scale / 2), **attrs)
        else:
            wide = array.astype(np.float32)
            wide = wide * spread(scale, wide, node.attrs["axis"], node.attrs["block_size"])
            if wide.ndim == 2:
                encoded = round_to(wide, grid_of(wide, INT8, wide.shape[0]))
                result = columns(b, encoded.codes, encoded.grid.scale[0], None)
            else:
                result = b.constant(wide.astype(np.float32))
        module.graph.replace(node, [result])
        count += 1
    return count


def _unread_codes(module: Module) -> int:
    """Stores weights as floats that no product of integers reads."""
    count = 0
    for node in list(module.graph):
        codes = node.inputs[0] if node.op is quant.dequantize else None
        if codes is None or not is_constant(codes) or node.attrs["block_size"]:
            continue
        if node.output.users and all(_reads_codes(user, node.output) for user in node.output.users):
            continue
        arrays = [constant_of(value, _ANY_SIZE) for value in node.inputs[:3]]
        if arrays[0] is None or arrays[1] is None:
            continue
        axis = node.attrs["axis"]
        wide = arrays[0].astype(np.float32)
        if arrays[2] is not None:
            wide = wide - spread(arrays[2], wide, axis, 0).astype(np.float32)
        wide = wide * spread(arrays[1], wide, axis, 0)
        b = Builder(module.graph, node, node.loc)
        module.graph.replace(node, [b.constant(wide.astype(np.float32), name=codes.name)])
        count += 1
    return count


def _reads_codes(user: Node, weight: Value) -> bool:
    if user.op in (linalg.matmul, linalg.gemm, conv.conv) and user.inputs[1] is weight:
        x = user.inputs[0]
        return x is not None and x.producer is not None and x.producer.op is quant.dequantize
    return user.op is conv.conv and user.inputs[2] is weight


def _float_tables(module: Module) -> int:
    stored = 0
    for node in module.graph.walk():
        codes = node.inputs[0] if node.op is quant.dequantize else None
        if codes is not None and codes.dtype is not None and codes.dtype.bits <= _SMALL_BITS:
            stored += int(np.prod([s for s in codes.shape or () if isinstance(s, int)]))
    count = 0
    for site in list(tables(module.graph)) if stored else ():
        table = weight_of(site.table)
        if table is None or math.prod(table.shape) * 4 <= stored * _SMALL_BITS // 8:
            continue
        rounded, scale, _ = round_table(site.name, table, None)
        b = Builder(module.graph, site.node, site.node.loc)
        write_table(b, site, rounded, scale)
        count += 1
    return count


def _float_products(module: Module) -> int:
    """Lets kernels round what they multiply by codes, which a file may have forbidden."""
    kept = [
        node
        for node in module.graph.walk()
        if node.op is quant.dequantize and node.attrs["accuracy_level"] != quant.INTEGER_PRODUCTS
    ]
    for node in kept:
        node.attrs["accuracy_level"] = quant.INTEGER_PRODUCTS
    return len(kept)


_STEPS: tuple[tuple[str, Callable[[Module], int]], ...] = (
    ("integer-products", integer_products),
    ("stored-floats", _stored_floats),
    ("channel-ranges", channel_ranges),
    ("stated-ranges", stated_ranges),
    ("unread-codes", _unread_codes),
    ("float-tables", _float_tables),
    ("float-products", _float_products),
)
