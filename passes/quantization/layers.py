"""Rewriting the linear layers that read one value, and what that costs each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.calibration.curvature import Curvature, curvature
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.protocol import LayerError
from regraft.passes.quantization.encoding import Encoded
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.ranges import (
    Range,
    rounded,
    searched_range,
    smoothing,
    tail_channels,
)
from regraft.passes.quantization.rewrite import (
    Input,
    dynamic_input,
    static_input,
    token_input,
    write_linear,
)
from regraft.passes.quantization.sites import Linear

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How layers are rewritten.

    Args:
        format: Of weights.
        mode: How inputs are rounded: `static`, `token`, `dynamic` or `none`.
        method: How codes are found.
        group: Inputs that share a scale, 0 for all of a layer.
        num_tail: Channels that stay in float.
        strength: How far large channels are scaled down, 0 to 1.
        folder: For large codes; default: the system's temporary folder.
    """

    format: Format
    mode: str
    method: Method
    group: int
    num_tail: int
    strength: float
    folder: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Rounding:
    """How one value is rounded.

    Args:
        factor: f32[K], what it is multiplied by before.
        tail: i64[T], channels that stay in float.
        span: The range, None for one per row or per run, or where nothing is rounded.
    """

    factor: Array
    tail: Array
    span: Range | None


def rewrite_readers(
    module: Module,
    readers: Sequence[Linear],
    plan: Plan,
    stats: Statistics | None,
    before: Statistics | None,
) -> list[LayerError]:
    """Rewrites all layers that read one value, and returns what that costs each.

    Args:
        module: The module, changed in place.
        readers: The layers.
        plan: How.
        stats: Of the value, None where nothing was run.
        before: Of the value while all was in float: what earlier layers shift on average is taken
            back here.
    """
    x = readers[0].node.inputs[0]  # not `.x`: the layer that made it may be rewritten already
    if x is None:
        raise AssertionError("a linear layer has an input")
    rounding = _rounding(readers, plan, stats)
    b = Builder(module.graph, readers[0].node, readers[0].node.loc)
    source = _input(b, x, plan.mode, rounding)
    drift = None if stats is None or before is None else before.mean - stats.mean
    curved = None if stats is None or stats.moments is None else curvature(stats.moments)
    return [_layer(module, site, source, plan, rounding, stats, curved, drift) for site in readers]


def _rounding(readers: Sequence[Linear], plan: Plan, stats: Statistics | None) -> _Rounding:
    size = readers[0].sizes[0]
    factor, tail, span = np.ones(size, np.float32), np.zeros(0, np.int64), None
    if stats is None:
        return _Rounding(factor, tail, span)
    if plan.strength:
        factor = smoothing(stats, plan.strength)
    if plan.num_tail:
        tail = tail_channels(stats, min(plan.num_tail, size), factor)
    if plan.mode == "static":
        body = np.ones(size, bool)
        body[tail] = False
        weight = np.zeros(size)
        for site in readers:
            matrix = site.matrix()
            weight += np.einsum("kn,kn->k", matrix, matrix, dtype=np.float64)
        span = searched_range(stats, body, factor, weight / np.square(factor))
    return _Rounding(factor, tail, span)


def _input(b: Builder, x: Value, mode: str, rounding: _Rounding) -> Input:
    if rounding.span is not None:
        factor = None if (rounding.factor == 1).all() else rounding.factor
        return static_input(b, x, rounding.span, factor, rounding.tail)
    if mode == "token":
        return token_input(b, x, rounding.factor.size, rounding.tail)
    return dynamic_input(b, x) if mode == "dynamic" else Input(x)


def _layer(
    module: Module, site: Linear, source: Input, plan: Plan, rounding: _Rounding,
    stats: Statistics | None, curved: Curvature | None, drift: Array | None,
) -> LayerError:  # fmt: skip
    matrix = site.matrix()
    size, width = matrix.shape
    tail = rounding.tail
    scaled = matrix / rounding.factor[:, None] if (rounding.factor != 1).any() else matrix
    main = scaled
    if tail.size:
        main = scaled.copy()
        main[tail] = 0
    encoded = encode(main, plan.format, plan.group or size, plan.method, stats, curved)
    shift, ran = None, stats is not None and stats.rows > 0
    if stats is not None and ran:
        rows = stats.sample()
        exact = rows @ matrix
        off = exact - _seen(rows * rounding.factor, plan.mode, rounding, encoded, scaled)
        shift = off.mean(0)
        error = _relative(off - shift, exact)
        if drift is not None:
            shift = (shift + drift @ matrix).astype(np.float32)
    else:
        error = _relative(encoded.decode() - main, main)
    write_linear(
        module, site, source, encoded, scaled[tail] if tail.size else None, shift,
        plan.folder, per_channel=plan.group == 0,
    )  # fmt: skip
    num_bytes = encoded.num_bytes + 4 * tail.size * width
    return LayerError(site.name, plan.format.name, error, ran, num_bytes, 4 * matrix.size)


def _relative(difference: Array, reference: Array) -> float:
    """Returns the root mean square of a difference over that of what it is from."""
    scale = float(np.sqrt(np.square(reference).mean())) or 1.0
    return float(np.sqrt(np.square(difference).mean())) / scale


def _seen(rows: Array, mode: str, rounding: _Rounding, encoded: Encoded, scaled: Array) -> Array:
    """Returns what the quantized layer makes of rows that were seen, f32[R, N]."""
    weight, tail = encoded.decode(), rounding.tail
    if rounding.span is not None:
        result = rounded(rows, rounding.span) @ weight
    elif mode == "token":
        inner = rows.copy()
        inner[:, tail] = 0
        top = np.maximum(np.abs(inner).max(1, keepdims=True), np.finfo(np.float32).tiny)
        result = np.rint(inner / top * 127) / 127 * top @ weight
    else:
        result = rows @ weight
    return result + rows[:, tail] @ scaled[tail]  # type: ignore[no-any-return]  # of arrays
