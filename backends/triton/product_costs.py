"""What a product costs, alone and with what stands before and after it.

Rates are a model of an H200, none measured. The vendor's library runs a product faster than a
template does, and a template that makes its rows itself runs slower still; what it saves are bytes
and launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regraft.backends.triton.region_nodes import (
    BYTES_PER_S,
    FLOPS,
    LAUNCH_S,
    bytes_of,
    flops_of,
    guess,
    inputs_of,
    passes_of,
)
from regraft.ir.graph import Node, Value
from regraft.ir.types import DType

PRODUCT_FLOPS = {DType.F32: 5.0e13, DType.F16: 6.5e14, DType.BF16: 6.5e14}
"""Of the vendor's library per second; f32 without rounding to TF32."""
TEMPLATE_SHARE = {DType.F32: 0.65, DType.F16: 0.85, DType.BF16: 0.85}
"""Of that rate, for a template."""
PROLOGUE_SHARE = 0.75
"""Of the rate of a template, for one whose rows pass through registers."""
CACHE_BYTES_PER_S = 5.5e12
"""Of the second-level cache."""
LATENCY_S = 2e-6
"""No product is done sooner."""
COLUMNS_AT_ONCE = 128
"""Columns of a tile: what stands before a product is computed once per tile."""


def library_seconds(product: Node, result: Value) -> float:
    """Returns the estimated time of a product, with its bias, by the vendor's library."""
    return _seconds(product, library_traffic(product, result), 1.0)


def library_traffic(product: Node, result: Value) -> int:
    """Returns the bytes that the vendor's library reads and writes."""
    return sum(bytes_of(value) for value in product.inputs if value is not None) + bytes_of(result)


def template_seconds(
    product: Node, before: Sequence[Node], after: Sequence[Node], results: Iterable[Value]
) -> float:
    """Returns the estimated time of a product as a template.

    Args:
        product: The product.
        before: Nodes that make its rows.
        after: Nodes that read its result.
        results: What is written.
    """
    x, weight = product.inputs[:2]
    if x is None or weight is None or weight.shape is None:
        raise AssertionError("a product without operands")
    share = TEMPLATE_SHARE.get(x.dtype, 1.0)
    traffic = template_traffic(product, before, after, results)
    chain = flops_of(after) / FLOPS
    if before:
        share *= PROLOGUE_SHARE
        tiles = -(-guess(weight.shape[1:]) // COLUMNS_AT_ONCE)
        read = sum(map(bytes_of, inputs_of(before)))
        chain += flops_of(before) * tiles / FLOPS
        chain += read * (passes_of(before, 0) * tiles - 1) / CACHE_BYTES_PER_S
    return _seconds(product, traffic, share) + chain


def template_traffic(
    product: Node, before: Sequence[Node], after: Sequence[Node], results: Iterable[Value]
) -> int:
    """Returns the bytes that a template reads and writes."""
    made = {node.outputs[0] for node in (product, *before, *after)}
    read = dict.fromkeys(inputs_of([*before, *after]))
    read.update(dict.fromkeys(value for value in product.inputs if value is not None))
    return sum(bytes_of(value) for value in read if value not in made) + sum(map(bytes_of, results))


def _seconds(product: Node, traffic: int, share: float) -> float:
    x, result = product.inputs[0], product.output
    if x is None or x.shape is None or result.shape is None or x.dtype is None:
        raise AssertionError("a product of unknown shape")
    flops = 2 * guess(result.shape) * guess(x.shape[-1:])
    rate = PRODUCT_FLOPS[x.dtype] * share
    return LAUNCH_S + max(flops / rate, traffic / BYTES_PER_S, LATENCY_S)
