"""Weights of experts as codes, with a scale per block of what a product sums over.

Codes are integers or stand for the numbers of a table (NF4, MXFP4): `dequantize` or `lookup`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import quant
from regraft.ir.spill import stored
from regraft.passes.experts.layers import MoeLayer, moe_layers_of
from regraft.passes.protocol import LayerError, Skip
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.refusals import check_finite
from regraft.passes.quantization.rewrite import stored_scales

Array = np.ndarray[Any, Any]

_MIN_BLOCK = 16
_OPERANDS = {"up": 2, "down": 3, "gate": 4}
_FROM_WEIGHTS: tuple[Method, ...] = ("round", "search", "hqq")
"""Methods that need nothing of the inputs: which tokens an expert gets changes with every layer."""


def store_in_codes(
    module: Module,
    fmt: Format,
    group: int,
    method: Method,
    is_kept: Callable[[str], bool],
    folder: Path | None,
) -> tuple[list[LayerError], list[Skip]]:
    """Stores the matrices of all layers of experts in codes.

    Args:
        module: The module, changed in place.
        fmt: Symmetric integers, or a table.
        group: Channels that share a scale, at most; 0: as many as can.
        method: How codes are found; `search` for those that need inputs.
        is_kept: Whether weights of a name stay in float.
        folder: For large codes; default: the system's temporary folder.

    Returns:
        Per matrix what rounding changes of it, relative; and what is left in float, and why.
    """
    layers, skipped = moe_layers_of(module)
    errors: list[LayerError] = []
    for layer in layers:
        reason = "kept by option" if is_kept(layer.name) else _reason(layer, fmt)
        if reason is not None:
            skipped.append(Skip(layer.name, reason))
            continue
        block = _block(layer, group)
        for name, idx in _OPERANDS.items():
            if name in layer.weights:
                chosen = method if method in _FROM_WEIGHTS else "search"
                errors.append(_store(layer, name, idx, fmt, block, chosen, folder))
    return errors, skipped


def _reason(layer: MoeLayer, fmt: Format) -> str | None:
    if not fmt.symmetric or fmt.bits not in (4, 8):
        return f"experts are stored as int4, int8 or in a table's codes, and not as {fmt.name}"
    if any(layer.weights[name].dtype != np.float32 for name in _OPERANDS if name in layer.weights):
        return "its experts are not f32"
    if layer.node.attrs["widths"]:
        return "its experts have several widths"
    # what shares a scale is part of a format that says how scales are stored
    wanted = _MIN_BLOCK if fmt.scales == "f32" else fmt.block
    if _block(layer, 0) < wanted:
        return f"{_sizes(layer)} channels have no block of {wanted} or more in common"
    return None


def _sizes(layer: MoeLayer) -> tuple[int, int]:
    hidden, channels = layer.weights["up"].shape[1:]
    return int(channels), int(hidden)


def _block(layer: MoeLayer, group: int) -> int:
    """Returns the largest power of two up to `group` (0: any) that divides all sums, 0 below 16."""
    common = int(np.gcd(*_sizes(layer)))
    block = common & -common
    while group and block > group:
        block //= 2
    return block if block >= _MIN_BLOCK else 0


def _store(
    layer: MoeLayer, name: str, idx: int, fmt: Format, block: int, method: Method,
    folder: Path | None,
) -> LayerError:  # fmt: skip
    array, node = layer.weights[name], layer.node
    value = node.inputs[idx]
    assert value is not None, "a layer has its weights"
    check_finite(_label(value, f"{layer.name}.{name}"), array)
    codes = np.empty(array.shape, fmt.dtype.numpy)
    scales = np.empty((*array.shape[:2], array.shape[2] // block), np.float32)
    lost = 0.0
    for expert, matrix in enumerate(array):
        found = encode(np.ascontiguousarray(matrix.T), fmt, block, method, None)
        codes[expert] = found.codes.T.astype(fmt.dtype.numpy)
        scales[expert] = found.grid.scale.T
        lost += float(np.square(found.decode().T - matrix, dtype=np.float64).sum())
    whole = float(np.square(array, dtype=np.float64).sum())
    b = Builder(layer.graph, node, node.loc)
    label = _label(value, f"{layer.name}.{name}")
    kept = b.weight(f"{label}.codes", stored(codes, folder, (label,)))
    scale, scale_bytes = stored_scales(b, label, scales, fmt)
    place = {"axis": 2, "block_size": block}
    if fmt.table is None:
        whole_matrix = b.op(quant.dequantize, kept, scale, **place)
    else:
        table = b.constant(np.nan_to_num(np.asarray(fmt.table, np.float32)))
        whole_matrix = b.op(quant.lookup, kept, table, scale, **place)
    node.set_operand(idx, whole_matrix)
    num_bytes = fmt.dtype.nbytes(codes.size) + scale_bytes
    error = float(np.sqrt(lost / whole)) if whole else 0.0
    return LayerError(label, fmt.name, error, False, num_bytes, array.nbytes)


def _label(value: Value, default: str) -> str:
    maker = value.producer
    return str(maker.attrs.get("name", default)) if maker is not None else default
