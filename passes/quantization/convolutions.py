"""Convolutions in 8 bits: codes from one convolution to the next, float where that is faster.

Every value between two of them is quantized and dequantized at once, which ONNX Runtime takes into
its kernels: inputs u8 in one range, weights s8 with a scale per output, biases s32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.constants import is_constant
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import activation, arithmetic, conv, norm, pool, slicing
from regraft.ir.types import DType
from regraft.passes.cleanup.fold_norms import FoldNorms
from regraft.passes.protocol import Context, LatencySource, LayerError, Skip
from regraft.passes.quantization.channel_ranges import level_channels
from regraft.passes.quantization.convolution_budget import Choice, within_budget
from regraft.passes.quantization.convolution_codes import (
    SAME_RANGE,
    Codes,
    convolution_name,
    write_codes,
)
from regraft.passes.quantization.convolution_costs import LEAST_GAIN, Piece, Shape, choose
from regraft.passes.quantization.convolution_moments import Patches
from regraft.passes.quantization.decisions import Judge
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.histogram import Criterion, Histogram, range_by

Array = np.ndarray[Any, Any]

_MAX_JUDGED = 64
"""Samples whose decisions are looked at."""
_SAMPLES_OF_ERRORS = 8
_LEAST_MEASURED_GAIN = 0.02
"""What costs have to promise where the whole is measured afterwards."""
_LEAST_SPEED = 1.0
"""Of the float module's, measured in turns: less is taken back."""
_TAKEN_IN = frozenset({activation.relu, activation.clip})
"""Activations whose bounds a range of codes has anyway: kernels leave them out."""
_JOINS = frozenset({arithmetic.add, slicing.concat, pool.global_average_pool, pool.average_pool})


@dataclass(slots=True)
class Convolved:
    """What became of the convolutions of a module.

    Attributes:
        num_int8: Convolutions in 8 bits.
        num_float: Convolutions left in float.
        share: Fraction of the products that are in 8 bits.
        pointwise_share: Fraction of those of 1x1 convolutions.
        damage: Part of the budget that is used, measured.
        alone: Part that each piece would use alone, where it was asked.
        layers: What rounding costs each of those in 8 bits.
        judge: What the budget is held by, None without one.
        speed: Measured, of the module with them against the float one; 0 where nothing measures.
        skipped: Why the others are not.
    """

    num_int8: int = 0
    num_float: int = 0
    share: float = 0.0
    pointwise_share: float = 0.0
    damage: float = 0.0
    alone: dict[int, float] = field(default_factory=dict)
    layers: list[LayerError] = field(default_factory=list)
    judge: Judge | None = None
    speed: float = 0.0
    skipped: list[Skip] = field(default_factory=list)


def quantize_convolutions(
    module: Module,
    ctx: Context,
    fmt: Format,
    criterion: Criterion,
    kept: Callable[[str], bool],
    budget: float | None = None,
) -> Convolved:
    """Rewrites the convolutions of a module that are faster in 8 bits.

    Args:
        module: The module, changed in place.
        ctx: Gives samples and a source of activations.
        fmt: Format of weights: int8, or int7.
        criterion: How ranges of values are found.
        kept: Whether the layer of a name stays in float.
        budget: Share of the items whose decision may change, None for any.

    Raises:
        UsageError: When a value holds NaN or Inf on a sample.
    """
    report = Convolved()
    if any(node.op is norm.batch_norm for node in module.graph):
        FoldNorms().run(module, ctx)  # a norm between them would keep results in float
    pieces = _pieces(module, kept, report)
    if all(piece.shape is None for piece in pieces):
        return report
    if not ctx.samples or ctx.activations is None:
        report.num_float = sum(1 for piece in pieces if piece.shape is not None)
        report.skipped.append(
            Skip(f"{report.num_float} convolutions", "ranges need samples: give --calibrate")
        )
        return report
    before, judge = module.clone(), None
    least_gain = LEAST_GAIN if ctx.latency is None else _LEAST_MEASURED_GAIN
    if budget is not None:
        # spread over all of them: neighbours may be parts of one photograph
        step = -(-len(ctx.samples) // _MAX_JUDGED)
        judge = Judge(module, ctx.activations, ctx.samples[::step], budget)
    values = list(dict.fromkeys(v for p in pieces for v in (*p.inputs, p.result)))
    readers = list(dict.fromkeys(p.inputs[0] for p in pieces if p.shape is not None))
    level_channels(module, readers, _tops(module, values, ctx))
    found, means, shapes, moments = _histograms(module, values, pieces, ctx)
    sizes = {value: int(np.prod(shapes[value])) for value in values}
    sized = [_sized(piece, shapes) for piece in pieces]
    spans = {value: range_by(each, criterion) for value, each in found.items()}
    codes = Codes(fmt, spans, means, moments)
    if judge is None:
        inside, reasons = choose(sized, sizes, least_gain=least_gain)
        choice = Choice(frozenset(inside), reasons, 0.0, {})
    else:
        choice = within_budget(module, sized, sizes, codes, judge, least_gain)
        report.judge = judge
    report.damage, report.alone = choice.damage, dict(choice.alone)
    for idx, reason in choice.reasons.items():
        report.skipped.append(Skip(convolution_name(sized[idx].node), reason))
    shapes_of = {idx: piece.shape for idx, piece in enumerate(sized) if piece.shape is not None}
    report.num_int8 = len(choice.inside & shapes_of.keys())
    report.num_float += len(shapes_of) - report.num_int8
    report.share = _share(shapes_of, choice.inside)
    pointwise = {idx: shape for idx, shape in shapes_of.items() if shape.window == 1}
    report.pointwise_share = _share(pointwise, choice.inside)
    inside_pieces = [sized[idx] for idx in sorted(choice.inside)]
    if not report.num_int8:
        module.restore(before)
        return report
    report.layers = _errors(module, inside_pieces, codes, ctx)
    write_codes(module, inside_pieces, codes, {value: value for value in values}
                | {piece.node.output: piece.node.output for piece in inside_pieces})  # fmt: skip
    if ctx.latency is not None:
        _hold_to_speed(module, before, ctx.latency, report)
    return report


def _hold_to_speed(
    module: Module, before: Module, latency: LatencySource, report: Convolved
) -> None:
    """Takes everything back where it is measured to be no faster than the float module."""
    ratio = latency.ratio(before, module)
    report.speed = 1 / ratio
    if report.speed >= _LEAST_SPEED:
        return
    reason = f"{report.num_int8} in 8 bits were measured to run at {report.speed:.2f}x of float"
    module.restore(before)
    report.skipped.append(Skip(f"{report.num_int8} convolutions", reason))
    report.num_float, report.num_int8 = report.num_float + report.num_int8, 0
    report.share = report.pointwise_share = report.damage = 0.0
    report.layers = []


def _share(shapes: Mapping[int, Shape], inside: frozenset[int]) -> float:
    """Returns the fraction of the products that is inside, 0 where there are none."""
    total = sum(shape.macs for shape in shapes.values())
    done = sum(shape.macs for idx, shape in shapes.items() if idx in inside)
    return done / total if total else 0.0


def _errors(module: Module, pieces: list[Piece], codes: Codes, ctx: Context) -> list[LayerError]:
    """Returns what rounding costs each convolution, everything before it rounded as well."""
    convolutions = [piece for piece in pieces if piece.shape is not None]
    if not convolutions or ctx.activations is None:
        return []
    values: dict[Value, Value] = {}
    copy = module.clone(values)
    made = write_codes(copy, pieces, codes, values)
    results = [piece.result for piece in convolutions]
    rounded = [made[piece] for piece in convolutions]
    samples = ctx.samples[:_SAMPLES_OF_ERRORS]
    before = ctx.activations.activations(module, results, samples)
    after = ctx.activations.activations(copy, rounded, samples)
    lost, scale = np.zeros(len(results)), np.zeros(len(results))
    for left, right in zip(before, after, strict=True):
        for idx, (a, b) in enumerate(zip(results, rounded, strict=True)):
            lost[idx] += float(np.square(left[a] - right[b], dtype=np.float64).sum())
            scale[idx] += float(np.square(left[a], dtype=np.float64).sum())
    found = []
    for idx, piece in enumerate(convolutions):
        encoded = codes.encoded[piece.node]
        error = float(np.sqrt(lost[idx] / max(scale[idx], 1e-30)))
        found.append(LayerError(
            convolution_name(piece.node), codes.format.name, error, True, encoded.num_bytes,
            4 * encoded.codes.size,
        ))  # fmt: skip
    return found


def _pieces(module: Module, kept: Callable[[str], bool], report: Convolved) -> list[Piece]:
    """Returns convolutions by constants, and what joins their results."""
    pieces = []
    for node in module.graph:
        if node.op is conv.conv and _fits(node):
            if kept(convolution_name(node)):
                report.skipped.append(Skip(convolution_name(node), "kept by option"))
                report.num_float += 1
                continue
            inputs = [value for value in node.inputs[:1] if value is not None]
            pieces.append(Piece(node, tuple(inputs), _result(node), Shape(1, 1, 1, 1, 0)))
        elif node.op in _JOINS or node.op in SAME_RANGE:
            inputs = [value for value in node.inputs if value is not None]
            if len(inputs) == len(node.inputs) and all(_is_plane(value) for value in inputs):
                result = _result(node) if node.op is arithmetic.add else node.output
                pieces.append(Piece(node, tuple(dict.fromkeys(inputs)), result, None))
    return pieces


def _fits(node: Node) -> bool:
    x, weight, bias = node.inputs[:3]
    if x is None or weight is None or x.dtype is not DType.F32 or is_constant(x):
        return False
    return is_constant(weight) and (bias is None or is_constant(bias))


def _is_plane(value: Value) -> bool:
    return value.dtype is DType.F32 and (value.rank or 0) >= 3 and not is_constant(value)


def _result(node: Node) -> Value:
    """Returns what a kernel hands on: the result, after an activation that it takes in."""
    value = node.output
    users = value.users
    if value.num_uses == 1 and len(users) == 1 and users[0].op in _TAKEN_IN:
        rest = users[0].inputs[1:]
        if users[0].inputs[0] is value and all(x is None or is_constant(x) for x in rest):
            return users[0].output
    return value


def _tops(module: Module, values: list[Value], ctx: Context) -> dict[Value, Array]:
    """Returns the largest absolute value of every channel on the samples, f32[C].

    Of values whose axis 1 has one size: a join may be of sequences.
    """
    found: dict[Value, Array] = {}
    channels = [v for v in values if v.shape and len(v.shape) > 1 and isinstance(v.shape[1], int)]
    for item in _activations(module, channels, ctx) if channels else ():
        for value, array in item.items():
            top = np.abs(array).max((0, *range(2, array.ndim)), initial=0)
            found[value] = np.maximum(found.get(value, top), top)
    return found


def _activations(module: Module, values: list[Value], ctx: Context) -> Iterator[dict[Value, Array]]:
    if ctx.activations is None:
        raise AssertionError("a source of activations was asked for before")
    for item in ctx.activations.activations(module, values, ctx.samples):
        for value, array in item.items():
            if not np.isfinite(array).all():
                raise UsageError(
                    f"`{value.name}` holds NaN or Inf on a sample: no range holds it",
                    hint="find the sample with `regraft compare`, or keep the layer in float",
                )
        yield item


def _histograms(
    module: Module, values: list[Value], pieces: list[Piece], ctx: Context
) -> tuple[
    dict[Value, Histogram], dict[Value, Array], dict[Value, tuple[int, ...]], dict[Node, Array]
]:
    """Returns histograms and shapes of all values, means by channel and moments of what is read."""
    convolutions = [piece for piece in pieces if piece.shape is not None]
    readers = {piece.inputs[0] for piece in convolutions}
    found = {value: Histogram() for value in values}
    patches = Patches([piece.node for piece in convolutions], len(ctx.samples))
    totals: dict[Value, Array] = {}
    counts = dict.fromkeys(values, 0)
    shapes: dict[Value, tuple[int, ...]] = {}
    for item in _activations(module, values, ctx):
        patches.update(item)
        for value, array in item.items():
            found[value].update(array.astype(np.float32, copy=False))
            shapes[value] = array.shape
            if value in readers:
                rest = tuple(axis for axis in range(array.ndim) if axis != 1)
                totals[value] = totals.get(value, 0.0) + array.sum(rest, dtype=np.float64)
                counts[value] += array.size // array.shape[1]
    means = {value: total / counts[value] for value, total in totals.items()}
    return found, means, shapes, patches.moments()


def _sized(piece: Piece, shapes: Mapping[Value, tuple[int, ...]]) -> Piece:
    weight = piece.node.inputs[1] if piece.shape else None
    if weight is None:
        return piece
    sizes = [size for size in weight.shape or () if isinstance(size, int)]
    outputs = shapes[piece.result]
    positions = int(np.prod([outputs[0], *outputs[2:]]))
    shape = Shape(
        sizes[1], sizes[0], piece.node.attrs["groups"], int(np.prod(sizes[2:])), positions
    )
    return Piece(piece.node, piece.inputs, piece.result, shape)
