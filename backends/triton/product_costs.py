"""What a product costs, alone and with what stands before and after it.

Rates are a model of an H200, none measured. The vendor's library runs a product faster than a
template does, and a template that makes its rows itself runs slower still; what it saves are bytes
and launches.
"""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.triton.product_chains import Core
from regraft.backends.triton.region_nodes import (
    BYTES_PER_S,
    FLOPS,
    LAUNCH_S,
    bytes_of,
    flops_of,
    guess,
    inputs_of,
    outputs_of,
    passes_of,
)
from regraft.ir.graph import Node
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


def library_seconds(core: Core) -> float:
    """Returns the estimated time of a product, with its bias, by the vendor's library."""
    return _seconds(core, library_traffic(core), 1.0)


def library_traffic(core: Core) -> int:
    """Returns the bytes that the vendor's library reads and writes."""
    return sum(map(bytes_of, (core.rows, core.weight, core.result)))


def template_seconds(core: Core, before: Sequence[Node], after: Sequence[Node]) -> float:
    """Returns the estimated time of a product as a template.

    Args:
        core: The product.
        before: Nodes that make its rows.
        after: Nodes that read its result.
    """
    share = TEMPLATE_SHARE[_dtype(core)]
    traffic = template_traffic(core, before, after)
    chain = flops_of(after) / FLOPS
    if before:
        share *= PROLOGUE_SHARE
        tiles = -(-guess((core.weight.shape or ())[1:]) // COLUMNS_AT_ONCE)
        read = sum(map(bytes_of, inputs_of(before)))
        chain += flops_of(before) * tiles / FLOPS
        chain += read * (passes_of(before, 0) * tiles - 1) / CACHE_BYTES_PER_S
    return _seconds(core, traffic, share) + chain


def template_traffic(core: Core, before: Sequence[Node], after: Sequence[Node]) -> int:
    """Returns the bytes that a template reads and writes."""
    own = {*core.nodes, *before, *after}
    biases = [] if core.bias is None else [core.bias]
    read = dict.fromkeys([core.rows, core.weight, *biases, *inputs_of([*before, *after])])
    outside = sum(bytes_of(value) for value in read if value.producer not in own)
    return outside + sum(map(bytes_of, outputs_of([*core.nodes, *after])))


def _dtype(core: Core) -> DType:
    if core.weight.dtype is None:
        raise AssertionError("a product of an unknown dtype")
    return core.weight.dtype


def _seconds(core: Core, traffic: int, share: float) -> float:
    if core.rows.shape is None or core.result.shape is None:
        raise AssertionError("a product of unknown shape")
    flops = 2 * guess(core.result.shape) * guess(core.rows.shape[-1:])
    rate = PRODUCT_FLOPS[_dtype(core)] * share
    return LAUNCH_S + max(flops / rate, traffic / BYTES_PER_S, LATENCY_S)
