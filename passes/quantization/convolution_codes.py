"""Writing convolutions in codes: quantized values between them, weights and biases as integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import conv, pool, quant
from regraft.ir.weights import ArrayWeight
from regraft.passes.calibration.curvature import curvature
from regraft.passes.quantization.convolution_costs import Piece
from regraft.passes.quantization.encoding import Encoded, round_to, searched_grid
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.grouped_codes import grouped_codes
from regraft.passes.quantization.methods import encode
from regraft.passes.quantization.ranges import Range
from regraft.passes.quantization.sites import weight_name

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
SAME_RANGE = frozenset({pool.max_pool})
"""Operators whose results are some of their operands."""
_BIAS_TOP = float(1 << 30)


def convolution_name(node: Node) -> str:
    """Returns the name of a convolution's weight, or of its result."""
    weight = node.inputs[1]
    found = None if weight is None else weight_name(weight)
    return found or node.output.name or node.op.name


@dataclass(slots=True)
class Codes:
    """What a rewrite needs of the samples and of the weights.

    Attributes:
        format: Of weights.
        spans: Range of every value.
        means: f64[C], mean of every channel of the values that convolutions read.
        moments: f64[groups, K, K] of what convolutions sum over, about the mean; weights of others
            are rounded number by number.
        encoded: Weights that were rounded, by name and bias step: kept, for they are tried often.
    """

    format: Format
    spans: Mapping[Value, Range]
    means: Mapping[Value, Array]
    moments: Mapping[Node, Array] = field(default_factory=dict)
    encoded: dict[Node, Encoded] = field(default_factory=dict)


def translated(pieces: Sequence[Piece], values: Mapping[Value, Value]) -> list[Piece]:
    """Returns pieces of a module as those of its copy."""
    found = []
    for piece in pieces:
        maker = values[piece.node.output].producer
        if maker is None:
            raise AssertionError("a piece has a node")
        inputs = tuple(values[value] for value in piece.inputs)
        found.append(Piece(maker, inputs, values[piece.result], piece.shape))
    return found


def write_codes(
    module: Module, pieces: Sequence[Piece], codes: Codes, values: Mapping[Value, Value]
) -> dict[Piece, Value]:
    """Rewrites pieces of a module, or of a copy of it; returns what the convolutions result in.

    Args:
        module: The module, changed in place.
        pieces: Pieces of the module that `codes` speaks of, in the order of its graph.
        codes: Ranges and weights.
        values: From values of that module to those of `module`.
    """
    own = translated(pieces, values)
    spans = {
        after: codes.spans[before]
        for piece, new in zip(pieces, own, strict=True)
        for before, after in zip(
            (*piece.inputs, piece.result), (*new.inputs, new.result), strict=True
        )
    }
    return _write(module, pieces, own, codes, spans)


def _write(
    module: Module, sources: Sequence[Piece], pieces: Sequence[Piece], codes: Codes,
    spans: dict[Value, Range],
) -> dict[Piece, Value]:  # fmt: skip
    for piece in pieces:  # in the order of the graph: chains of pools keep the first range
        if piece.node.op in SAME_RANGE:
            spans[piece.result] = spans[piece.inputs[0]]
    nodes = {piece.node for piece in pieces}
    made = {piece.result for piece in pieces}
    done: set[Value] = set()
    for piece in pieces:
        for value in (*piece.inputs, piece.result):
            if value not in done:
                done.add(value)
                _round(module, value, spans[value], None if value in made else nodes)
    results: dict[Piece, Value] = {}
    for source, piece in zip(sources, pieces, strict=True):
        if piece.shape is not None:
            after = _encode(module, source, piece.node, spans[piece.inputs[0]], codes)
            results[source] = after if piece.result is piece.node.output else piece.result
    return results


def _round(module: Module, value: Value, span: Range, readers: set[Node] | None) -> None:
    """Puts a quantized and dequantized copy between a value and what reads it.

    Args:
        module: The module.
        value: The value.
        span: Its range.
        readers: Those that read the copy; None for all.
    """
    maker = value.producer
    graph = module.graph
    b = Builder(graph, _after(module, maker), () if maker is None else maker.loc)
    uses = list(value.uses)
    scale, zero = b.constant(np.asarray(span.scale)), b.constant(np.asarray(span.zero_point))
    codes = b.op(quant.quantize, value, scale, zero)
    result = b.op(quant.dequantize, codes, scale, zero)
    for user, idx in uses:
        if readers is None or user in readers:
            user.set_operand(idx, result)


def _after(module: Module, maker: Node | None) -> Node | None:
    """Returns the node that comes after another, the first one for graph inputs."""
    return module.graph.first if maker is None else maker.next


def weights_of(node: Node, fmt: Format, moments: Array | None = None) -> Encoded:
    """Returns the codes of a convolution's weight [C/g * taps, outputs], a scale per output.

    Args:
        node: The convolution.
        fmt: The integers.
        moments: f64[groups, K, K] of what it sums over: codes then make up for each other's errors.
    """
    array = constant_of(node.inputs[1], _ANY_SIZE)
    if array is None:
        raise AssertionError("the weight of a piece is constant")
    matrix = np.asarray(array.reshape(array.shape[0], -1).T, np.float32)
    if moments is not None and len(moments) == 1:
        return encode(matrix, fmt, matrix.shape[0], "gptq", None, curvature(moments[0]))
    if moments is not None:
        return grouped_codes(matrix, searched_grid(matrix, fmt, matrix.shape[0]), moments)
    return round_to(matrix, searched_grid(matrix, fmt, matrix.shape[0]))


def _encode(module: Module, source: Piece, node: Node, span: Range, codes: Codes) -> Value:
    """Replaces weight and bias of a convolution by dequantized codes."""
    weight, bias = node.inputs[1], node.inputs[2]
    array = constant_of(weight, _ANY_SIZE)
    if array is None:
        raise AssertionError("the weight of a piece is constant")
    name = convolution_name(node)
    matrix = np.asarray(array.reshape(array.shape[0], -1).T, np.float32)
    encoded = codes.encoded.get(source.node)
    if encoded is None:
        encoded = codes.encoded[source.node] = weights_of(
            source.node, codes.format, codes.moments.get(source.node)
        )
    floats = constant_of(bias, _ANY_SIZE)
    total = np.zeros(array.shape[0]) if floats is None else floats.reshape(-1).astype(np.float64)
    total = total + _shift(array, matrix - encoded.decode(), codes.means[source.inputs[0]])
    grid = encoded.grid
    least = np.abs(total) / (_BIAS_TOP * float(span.scale))
    if (grid.scale[0] < least).any():  # a channel of almost nothing: its bias has to fit as well
        raised = np.maximum(grid.scale, least).astype(np.float32)
        encoded = round_to(matrix, type(grid)(grid.format, raised, None, grid.group))
        grid = encoded.grid
    b = Builder(module.graph, node, node.loc)
    stored = np.ascontiguousarray(encoded.codes.T).reshape(array.shape).astype(np.int8)
    held = b.weight(f"{name}.codes", ArrayWeight(stored, made_from=(name,)))
    scales = b.constant(grid.scale[0], name=f"{name}.scales")
    inputs = [node.inputs[0], b.op(quant.dequantize, held, scales, None, axis=0)]
    if total.any():
        step = (grid.scale[0].astype(np.float64) * float(span.scale)).astype(np.float32)
        whole = np.rint(total / step.astype(np.float64)).astype(np.int32)
        inputs.append(b.op(quant.dequantize, b.constant(whole), b.constant(step), None, axis=0))
    result = b.op(conv.conv, *inputs, **dict(node.attrs))
    module.graph.replace(node, [result])
    return result


def _shift(weight: Array, lost: Array, means: Array) -> Array:
    """Returns what rounding a weight takes off the mean of each output, f64[outputs].

    Padding is not looked at: the mean of a channel is taken to stand at every tap.

    Args:
        weight: f32[outputs, C/g, ...].
        lost: f32[C/g * taps, outputs], the weight minus what it was rounded to.
        means: f64[C], of the input's channels.
    """
    outputs, per_group = weight.shape[:2]
    groups = means.size // per_group
    own = means.reshape(groups, per_group).repeat(outputs // groups, 0)
    by_channel = lost.T.reshape(outputs, per_group, -1).sum(2, dtype=np.float64)
    shifts: Array = (by_channel * own).sum(1)
    return shifts
