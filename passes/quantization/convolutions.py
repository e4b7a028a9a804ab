"""Convolutions in 8 bits: codes from one convolution to the next, float where that is faster.

Every value between two of them is quantized and dequantized at once, which ONNX Runtime takes into
its kernels: inputs u8 in one range, weights s8 with a scale per output, biases s32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import activation, arithmetic, conv, norm, pool, quant, slicing
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight
from regraft.passes.cleanup.fold_norms import FoldNorms
from regraft.passes.protocol import Context, Skip
from regraft.passes.quantization.convolution_costs import Piece, Shape, choose
from regraft.passes.quantization.encoding import round_to, searched_grid
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.histogram import Criterion, Histogram, range_by
from regraft.passes.quantization.ranges import Range
from regraft.passes.quantization.sites import weight_name

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
_TAKEN_IN = frozenset({activation.relu, activation.clip})
"""Activations whose bounds a range of codes has anyway: kernels leave them out."""
_JOINS = frozenset({arithmetic.add, slicing.concat, pool.global_average_pool, pool.average_pool})
_SAME_RANGE = frozenset({pool.max_pool})
"""Operators whose results are some of their operands."""
_BIAS_TOP = float(1 << 30)


@dataclass(slots=True)
class Convolved:
    """What became of the convolutions of a module.

    Attributes:
        num_int8: Convolutions in 8 bits.
        num_float: Convolutions left in float.
        share: Fraction of the products that are in 8 bits.
        skipped: Why the others are not.
    """

    num_int8: int = 0
    num_float: int = 0
    share: float = 0.0
    skipped: list[Skip] = field(default_factory=list)


def quantize_convolutions(
    module: Module, ctx: Context, fmt: Format, criterion: Criterion, kept: Callable[[str], bool]
) -> Convolved:
    """Rewrites the convolutions of a module that are faster in 8 bits.

    Args:
        module: The module, changed in place.
        ctx: Gives samples and a source of activations.
        fmt: Format of weights: int8, or int7.
        criterion: How ranges of values are found.
        kept: Whether the layer of a name stays in float.

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
    values = list(dict.fromkeys(v for p in pieces for v in (*p.inputs, p.result)))
    found, shapes = _histograms(module, values, ctx)
    sizes = {value: int(np.prod(shapes[value])) for value in values}
    sized = [_sized(piece, shapes) for piece in pieces]
    inside, reasons = choose(sized, sizes)
    for idx, reason in reasons.items():
        report.skipped.append(Skip(_name(sized[idx].node), reason))
    shapes_of = {idx: piece.shape for idx, piece in enumerate(sized) if piece.shape is not None}
    report.num_int8 = len(inside & shapes_of.keys())
    report.num_float += len(shapes_of) - report.num_int8
    total = sum(shape.macs for shape in shapes_of.values())
    done = sum(shape.macs for idx, shape in shapes_of.items() if idx in inside)
    report.share = done / total if total else 0.0
    _rewrite(module, [sized[idx] for idx in sorted(inside)], found, fmt, criterion)
    return report


def _name(node: Node) -> str:
    weight = node.inputs[1]
    found = None if weight is None else weight_name(weight)
    return found or node.output.name or node.op.name


def _pieces(module: Module, kept: Callable[[str], bool], report: Convolved) -> list[Piece]:
    """Returns convolutions by constants, and what joins their results."""
    pieces = []
    for node in module.graph:
        if node.op is conv.conv and _fits(node):
            if kept(_name(node)):
                report.skipped.append(Skip(_name(node), "kept by option"))
                report.num_float += 1
                continue
            inputs = [value for value in node.inputs[:1] if value is not None]
            pieces.append(Piece(node, tuple(inputs), _result(node), Shape(1, 1, 1, 1, 0)))
        elif node.op in _JOINS or node.op in _SAME_RANGE:
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


def _histograms(
    module: Module, values: Sequence[Value], ctx: Context
) -> tuple[dict[Value, Histogram], dict[Value, tuple[int, ...]]]:
    found = {value: Histogram() for value in values}
    shapes: dict[Value, tuple[int, ...]] = {}
    if ctx.activations is None:
        raise AssertionError("a source of activations was asked for before")
    for item in ctx.activations.activations(module, list(values), ctx.samples):
        for value, array in item.items():
            if not np.isfinite(array).all():
                raise UsageError(
                    f"`{value.name}` holds NaN or Inf on a sample: no range holds it",
                    hint="find the sample with `regraft compare`, or keep the layer in float",
                )
            found[value].update(array.astype(np.float32, copy=False))
            shapes[value] = array.shape
    return found, shapes


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


def _rewrite(
    module: Module, pieces: Sequence[Piece], found: Mapping[Value, Histogram], fmt: Format,
    criterion: Criterion,
) -> None:  # fmt: skip
    spans = {value: range_by(found[value], criterion)
             for piece in pieces for value in (*piece.inputs, piece.result)}  # fmt: skip
    for piece in pieces:  # in the order of the graph: chains of pools keep the first range
        if piece.node.op in _SAME_RANGE:
            spans[piece.result] = spans[piece.inputs[0]]
    nodes = {piece.node for piece in pieces}
    made = {piece.result for piece in pieces}
    done: set[Value] = set()
    for piece in pieces:
        for value in (*piece.inputs, piece.result):
            if value not in done:
                done.add(value)
                _round(module, value, spans[value], None if value in made else nodes)
    for piece in pieces:
        if piece.shape is not None:
            _encode(module, piece.node, spans[piece.inputs[0]], fmt)


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


def _encode(module: Module, node: Node, span: Range, fmt: Format) -> None:
    """Replaces weight and bias of a convolution by dequantized codes."""
    weight, bias = node.inputs[1], node.inputs[2]
    array = constant_of(weight, _ANY_SIZE)
    if array is None:
        raise AssertionError("the weight of a piece is constant")
    name = _name(node)
    matrix = np.asarray(array.reshape(array.shape[0], -1).T, np.float32)
    grid = searched_grid(matrix, fmt, matrix.shape[0])
    floats = constant_of(bias, _ANY_SIZE)
    if floats is not None:  # a channel of almost nothing: its bias has to fit as well
        least = np.abs(floats) / (_BIAS_TOP * float(span.scale))
        if (grid.scale[0] < least).any():
            raised = np.maximum(grid.scale, least).astype(np.float32)
            grid = type(grid)(grid.format, raised, None, grid.group)
    encoded = round_to(matrix, grid)
    b = Builder(module.graph, node, node.loc)
    stored = np.ascontiguousarray(encoded.codes.T).reshape(array.shape).astype(np.int8)
    codes = b.weight(f"{name}.codes", ArrayWeight(stored, made_from=(name,)))
    scales = b.constant(grid.scale[0], name=f"{name}.scales")
    inputs = [node.inputs[0], b.op(quant.dequantize, codes, scales, None, axis=0)]
    if floats is not None:
        step = (grid.scale[0].astype(np.float64) * float(span.scale)).astype(np.float32)
        whole = np.rint(floats.reshape(-1) / step.astype(np.float64)).astype(np.int32)
        inputs.append(b.op(quant.dequantize, b.constant(whole), b.constant(step), None, axis=0))
    result = b.op(conv.conv, *inputs, **dict(node.attrs))
    module.graph.replace(node, [result])
