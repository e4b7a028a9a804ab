"""Rewriting the linear layers that read one value, and what that costs each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from regraft.passes.quantization.coded import Coded
from regraft.passes.quantization.encoding import Encoded, outputs_of, runs_of_outputs
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.ranges import (
    Range,
    rounded,
    searched_range,
    smoothing,
    tail_channels,
)
from regraft.passes.quantization.refusals import check_finite
from regraft.passes.quantization.rewrite import (
    Input,
    dynamic_input,
    static_input,
    token_input,
    write_linear,
)
from regraft.passes.quantization.rounded_files import can_round_by_parts, round_by_parts
from regraft.passes.quantization.sites import Linear

Array = np.ndarray[Any, Any]

_IN_PARTS = 1 << 20
"""Numbers of a weight from which on it is rounded as it is read."""


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


def sharing_weights(by_input: Mapping[Value, Sequence[Linear]]) -> list[list[Value]]:
    """Returns the inputs in order, those together whose layers read a weight of the same name.

    What is stored once is encoded once, for all that it multiplies.
    """
    found: dict[Value, list[Value]] = {}
    first: dict[tuple[str, bool], Value] = {}
    for x, readers in by_input.items():
        found[x] = [x]
        for site in readers:
            other = first.setdefault((site.name, site.transposed), x)
            if found[other] is not found[x]:
                found[other] += found[x]
                for each in found[x]:
                    found[each] = found[other]
    return list({id(group): group for group in found.values()}.values())


def rewrite_readers(
    module: Module,
    by_input: Mapping[Value, Sequence[Linear]],
    plan: Plan,
    seen: Mapping[Value, Statistics],
    before: Mapping[Value, Statistics],
) -> list[LayerError]:
    """Rewrites all layers that read some values, and returns what that costs each weight.

    Args:
        module: The module, changed in place.
        by_input: The layers by the value that they read: one, or several that share weights.
        plan: How.
        seen: Statistics of the values, empty where nothing was run.
        before: Of the values while all was in float: what earlier layers shift on average is taken
            back here.
    """
    readers = sorted((s for each in by_input.values() for s in each), key=lambda s: s.node.order)
    has_all = all(x in seen for x in by_input)
    stats = Statistics.joined([seen[x] for x in by_input]) if has_all else None
    rounding = _rounding(readers, plan, stats)
    curved = None
    if stats is not None and stats.moments is not None:
        curved = curvature(stats.take_spread(), overwrite=True)
    inputs: dict[Value, Input] = {}
    held: dict[str, Value] = {}
    found: dict[str, LayerError] = {}
    encodings: dict[str, Encoded] = {}
    stored: dict[str, Coded] = {}
    is_unseen = not any(x in seen for x in by_input)
    for site in readers:
        x = site.node.inputs[0]  # not `.x`: the layer that made it may be rewritten already
        if x is None:
            raise AssertionError("a linear layer has an input")
        if site.x not in inputs:
            b = Builder(module.graph, site.node, site.node.loc)
            inputs[site.x] = _input(b, x, plan.mode, rounding)
        if is_unseen and _is_rounded_in_parts(site, plan):
            if site.name not in found:
                stored[site.name], found[site.name] = _by_parts(site, plan)
            write_linear(
                module, site, inputs[site.x], stored[site.name], None, None,
                plan.folder, per_channel=False, held=held,
            )  # fmt: skip
            continue
        own, old = seen.get(site.x), before.get(site.x)
        drift = None if own is None or old is None else old.mean - own.mean
        error, encodings[site.name] = _layer(
            module, site, inputs[site.x], plan, rounding, own, curved, drift,
            stats, encodings.get(site.name), held,
        )  # fmt: skip
        other = found.get(site.name)
        if other is None or other.error < error.error:
            found[site.name] = error
    return list(found.values())


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


def _is_rounded_in_parts(site: Linear, plan: Plan) -> bool:
    size, width = site.sizes
    is_large = size * width >= _IN_PARTS
    return is_large and can_round_by_parts(plan.format, plan.group, size, plan.method)


def _by_parts(site: Linear, plan: Plan) -> tuple[Coded, LayerError]:
    """Returns the codes of a weight that nothing is known of the inputs of, and their error."""
    size, width = site.sizes
    stored, error = round_by_parts(
        site.name, site.rows(), plan.format, plan.group, plan.method, plan.folder
    )
    return stored, LayerError(
        site.name, plan.format.name, error, False, stored.num_bytes, 4 * size * width
    )


def _layer(
    module: Module, site: Linear, source: Input, plan: Plan, rounding: _Rounding,
    stats: Statistics | None, curved: Curvature | None, drift: Array | None,
    joined: Statistics | None, encoded: Encoded | None, held: dict[str, Value],
) -> tuple[LayerError, Encoded]:  # fmt: skip
    """Rewrites one layer; `joined` are statistics of all uses of its weight, `stats` of this."""
    matrix = site.matrix()
    check_finite(site.name, matrix)
    size, width = matrix.shape
    tail = rounding.tail
    scaled = matrix / rounding.factor[:, None] if (rounding.factor != 1).any() else matrix
    main = scaled
    if tail.size:
        main = scaled.copy()
        main[tail] = 0
    if encoded is None:
        encoded = encode(main, plan.format, plan.group or size, plan.method, joined, curved)
    shift, ran = None, stats is not None and stats.rows > 0
    if stats is not None and ran:
        shift, error = _seen_error(stats.sample(), matrix, scaled, plan.mode, rounding, encoded)
        if drift is not None:
            shift = (shift + drift.astype(np.float32) @ matrix).astype(np.float32)
    else:
        error = _weight_error(encoded, main)
    rows = scaled[tail] if tail.size else None
    del matrix, scaled, main  # of the widest layers half a gigabyte, while codes are written
    write_linear(
        module, site, source, encoded, rows, shift,
        plan.folder, per_channel=plan.group == 0, held=held,
    )  # fmt: skip
    num_bytes = encoded.num_bytes + 4 * tail.size * width
    found = LayerError(site.name, plan.format.name, error, ran, num_bytes, 4 * size * width)
    return found, encoded


def _weight_error(encoded: Encoded, matrix: Array) -> float:
    """Returns the error of a weight relative to it, some outputs at a time."""
    lost = whole = 0.0
    for run in runs_of_outputs(matrix.shape):
        part = matrix[:, run]
        lost += float(np.square(outputs_of(encoded, run).decode() - part).sum(dtype=np.float64))
        whole += float(np.square(part).sum(dtype=np.float64))
    return math.sqrt(lost / whole) if whole else 0.0


def _seen_error(
    rows: Array, matrix: Array, scaled: Array, mode: str, rounding: _Rounding, encoded: Encoded
) -> tuple[Array, float]:
    """Returns the mean of what rounding takes from rows f32[R, K], f32[N], and the relative error.

    The error is the root mean square of what differs beyond that mean, over that of the results.
    """
    shift = np.empty(matrix.shape[1], np.float32)
    lost = whole = 0.0
    inner = rows if (rounding.factor == 1).all() else rows * rounding.factor
    for run in runs_of_outputs(matrix.shape):
        exact = rows @ matrix[:, run]
        off = exact - _seen(inner, mode, rounding, outputs_of(encoded, run), scaled[:, run])
        shift[run] = off.mean(0)
        lost += float(np.square(off - shift[run]).sum(dtype=np.float64))
        whole += float(np.square(exact).sum(dtype=np.float64))
    return shift, math.sqrt(lost / (whole or 1.0))


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
