"""Writing a linear layer some of whose outputs are in 8 bits and the others in fewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, gathering, linalg, slicing
from regraft.passes.quantization.encoding import Encoded, outputs_of
from regraft.passes.quantization.rewrite import Input, dequantized, write_linear
from regraft.passes.quantization.sites import Linear

Array = np.ndarray[Any, Any]

_MAX_BIAS = 1 << 20


def write_mixed(
    module: Module, site: Linear, low: Encoded, high: Encoded, mask: Array, shift: Array,
    folder: Path | None = None,
) -> None:  # fmt: skip
    """Replaces a linear layer by products of two formats, joined in the order of its outputs.

    Args:
        module: The module, changed in place.
        site: The layer.
        low: Its weight in few bits.
        high: Its weight in 8 bits.
        mask: bool[N], the outputs in 8 bits.
        shift: f32[N], what is added to the result.
        folder: For large codes.
    """
    x = site.node.inputs[0]
    if x is None:
        raise AssertionError("a linear layer has an input")
    if mask.all() or not mask.any():
        encoded = high if mask.all() else low
        write_linear(module, site, Input(x), encoded, None, shift, folder, per_channel=False)
        return
    last, bias = site.with_bias()
    b = Builder(module.graph, last, site.node.loc)
    parts = []
    for word, encoded, chosen in (("low", low, ~mask), ("high", high, mask)):
        part = outputs_of(encoded, np.flatnonzero(chosen))
        weight = dequantized(b, f"{site.name}.{word}", part, folder, per_channel=False)
        parts.append(b.op(linalg.matmul, x, weight))
    joined = b.op(slicing.concat, *parts, axis=-1)
    order = np.argsort(np.concatenate([np.flatnonzero(~mask), np.flatnonzero(mask)]))
    result = b.op(gathering.gather, joined, b.constant(order.astype(np.int64)), axis=-1)
    known = None if bias is None else constant_of(bias, _MAX_BIAS)
    if known is not None:
        shift, bias = known + shift, None
    if bias is not None:
        result = b.op(arithmetic.add, result, bias)
    result = b.op(arithmetic.add, result, b.constant(shift, name=f"{site.name}.shifted_bias"))
    module.graph.replace(last, [result])
