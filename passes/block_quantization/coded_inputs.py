"""Inputs of linear layers in few bits: one range for all numbers, or one per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, quant
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.equivalence.reparam_norms import channel_ranges

Array = np.ndarray[Any, Any]

_ROWS = 1024
"""Rows that one range for all numbers is found on."""


def code_inputs(
    module: Module, readers: Mapping[Value, Sequence[Node]], found: Mapping[Value, Statistics],
    bits: int, by_channel: frozenset[Value] = frozenset(),
) -> list[tuple[Node, Value]]:  # fmt: skip
    """Rounds what layers read, in place; returns the layers with what each read before.

    Args:
        module: The module.
        readers: Linear layers by the value that they read first.
        found: Statistics of these values.
        bits: Of a code, 2 to 8; codes lie in 8 bits.
        by_channel: Values that get a range per channel: no kernel takes such codes.
    """
    before: list[tuple[Node, Value]] = []
    for x, nodes in readers.items():
        first = min(nodes, key=lambda node: node.order)
        b = Builder(module.graph, first, first.loc)
        rounded = (
            _channels(b, x, found[x], bits) if x in by_channel else _whole(b, x, found[x], bits)
        )
        for node in nodes:
            before.append((node, x))
            node.set_operand(0, rounded)
    return before


def _channels(b: Builder, x: Value, stats: Statistics, bits: int) -> Value:
    scale, zero = channel_ranges(stats, bits, "percentile")
    low = b.constant((-scale * zero).astype(np.float32))
    step = b.constant(scale.astype(np.float32))
    unit = b.op(arithmetic.div, b.op(arithmetic.sub, x, low), step)
    codes = _rounded(b, unit, 1.0, 0, bits)
    return b.op(arithmetic.add, b.op(arithmetic.mul, codes, step), low)


def _whole(b: Builder, x: Value, stats: Statistics, bits: int) -> Value:
    rows = stats.sample()
    flat = rows[:: max(1, len(rows) // _ROWS)].reshape(-1, 1)
    both = Statistics.empty(1, with_moments=False)
    both.low, both.high = flat.min(0), flat.max(0)
    both.kept = [flat]
    scale, zero = channel_ranges(both, bits, "learned")
    low, high = min(float(-scale[0] * zero[0]), 0.0), float(scale[0] * (2**bits - 1 - zero[0]))
    step = (max(high, 0.0) - low) / (2**bits - 1)
    return _rounded(b, x, step, round(-low / step), bits)


def _rounded(b: Builder, x: Value, step: float, point: int, bits: int) -> Value:
    levels = 2**bits - 1
    if bits < 8:  # codes of 8 bits go on to 255; 0 is their least
        x = b.op(arithmetic.min_, x, b.constant(np.asarray((levels - point) * step, np.float32)))
    scale, zero = b.constant(np.asarray(step, np.float32)), b.constant(np.asarray(point, np.uint8))
    return b.op(quant.dequantize, b.op(quant.quantize, x, scale, zero), scale, zero)
