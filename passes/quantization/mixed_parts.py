"""Writing a linear layer some of whose outputs or inputs are in 8 bits and the others in fewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, gathering, linalg, slicing
from regraft.passes.quantization.encoding import outputs_of
from regraft.passes.quantization.mixed_layer import Form, Layer
from regraft.passes.quantization.rewrite import Input, dequantized, write_linear
from regraft.passes.quantization.sites import Linear

Array = np.ndarray[Any, Any]

_MAX_BIAS = 1 << 20


def write_mixed(
    module: Module, site: Linear, layer: Layer, form: Form, folder: Path | None = None
) -> None:
    """Replaces a linear layer by one of its forms.

    Args:
        module: The module, changed in place.
        site: The layer in it.
        layer: What it is encoded as.
        form: How much of it is in 8 bits.
        folder: For large codes.
    """
    x = site.node.inputs[0]
    if x is None:
        raise AssertionError("a linear layer has an input")
    shift = layer.shift(form)
    part = layer.part(form)
    if part in (0.0, 1.0):
        encoded = layer.high if part else layer.low
        write_linear(module, site, Input(x), encoded, None, shift, folder, per_channel=False)
        return
    last, bias = site.with_bias()
    b = Builder(module.graph, last, site.node.loc)
    by_inputs = form.split == "inputs"
    write = _inputs_apart if by_inputs else _outputs_apart
    result = write(b, x, site, layer, form, folder)
    known = None if bias is None else constant_of(bias, _MAX_BIAS)
    if known is not None:
        shift, bias = known + shift, None
    if bias is not None:
        result = b.op(arithmetic.add, result, bias)
    result = b.op(arithmetic.add, result, b.constant(shift, name=f"{site.name}.shifted_bias"))
    module.graph.replace(last, [result])


def _outputs_apart(
    b: Builder, x: Value, site: Linear, layer: Layer, form: Form, folder: Path | None
) -> Value:
    """Returns products of two formats, joined in the order of the outputs."""
    mask = layer.rows(form.share)
    parts = []
    for word, encoded, chosen in (("low", layer.low, ~mask), ("high", layer.high, mask)):
        part = outputs_of(encoded, np.flatnonzero(chosen))
        weight = dequantized(b, f"{site.name}.{word}", part, folder, per_channel=False)
        parts.append(b.op(linalg.matmul, x, weight))
    joined = b.op(slicing.concat, *parts, axis=-1)
    order = np.argsort(np.concatenate([np.flatnonzero(~mask), np.flatnonzero(mask)]))
    return b.op(gathering.gather, joined, b.constant(order.astype(np.int64)), axis=-1)


def _inputs_apart(
    b: Builder, x: Value, site: Linear, layer: Layer, form: Form, folder: Path | None
) -> Value:
    """Returns the sum of products of two formats, each with its own part of the input."""
    piece = layer.pieces[form.share]
    parts = []
    for word, encoded, chosen in (("low", piece.low, ~piece.chosen),
                                  ("high", piece.high, piece.chosen)):  # fmt: skip
        places = b.constant(np.flatnonzero(chosen).astype(np.int64))
        part = b.op(gathering.gather, x, places, axis=-1)
        weight = dequantized(b, f"{site.name}.{word}", encoded, folder, per_channel=False)
        parts.append(b.op(linalg.matmul, part, weight))
    return b.op(arithmetic.add, *parts)
