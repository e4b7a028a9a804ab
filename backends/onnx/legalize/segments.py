"""Long sequences in segments that stay in the cache, one after the other in a Scan.

What a segment of causal linear attention needs of those before it is the state; what a segment of
attention through a window needs are the last keys and values. Computed at once, a long sequence is
read from memory by every step: heads of 32 channels are then two to three times as slow per
position as they are at 512 positions. The runtime hands a Scan's body views of its inputs along
the first axis, and lets it write into its results, so that cutting copies nothing; that axis is
the batch's where that is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regraft.backends.onnx.legalize.attention import flattened
from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, attention, control, fill, gathering, reshaping, slicing
from regraft.ir.ops.attention_weights import is_softmax
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.ops.shapes import operands_of
from regraft.ir.rewrite import LocalRule, Rewriter
from regraft.ir.types import DType

_LARGEST, _SMALLEST = 256, 128
"""Positions of a segment: of 128 to 512, measured with 12 heads of 32 and of 64."""

_LONG = 1024
"""Positions from which on a sequence is cut."""

_FAR = -1e9
_HEADS_OUTSIDE = (0, 2, 1, 3)

Body = Callable[[Builder, list[Value], list[Value]], tuple[list[Value], Value]]
"""(builder, carried, parts of one segment [1, size, C]) -> (carried on, result [1, size, W])."""


def segment_size(length: DimLike) -> int | None:
    """Returns how many positions a segment has, None where the sequence is not cut."""
    if not isinstance(length, int) or length < _LONG:
        return None
    sizes = range(_LARGEST, _SMALLEST - 1, -1)
    return next((size for size in sizes if length % size == 0), None)


def linear_in_segments(node: Node, rw: Rewriter) -> bool:
    """Cuts causal linear attention without decay; the state goes from segment to segment."""
    q, k, v = operands_of(node, 3)
    state, decay, beta = node.inputs[3:6]
    if q.shape is None or k.shape is None or v.shape is None or q.dtype is not DType.F32:
        return False
    (batch, H, T, D), E = k.shape, v.shape[3]
    size = segment_size(T)
    is_plain = node.attrs["causal"] and decay is None and beta is None
    if batch != 1 or size is None or not is_plain or not _is_static(q, k, v):
        return False
    b = rw.builder(node)
    if state is None:
        features = FEATURE_MAPS[node.attrs["feature_map"]].size(D)
        width = int(str(E)) + (node.attrs["normalizer"] == "sum")
        state = b.op(
            fill.constant_of_shape, shape=(1, H, features, width), value=np.zeros(1, np.float32)
        )

    def body(inner: Builder, carried: list[Value], parts: list[Value]) -> tuple[list[Value], Value]:
        heads = [
            split_heads(inner, part, (whole.shape or ())[1])
            for part, whole in zip(parts, (q, k, v), strict=True)
        ]
        out, last = inner.multi(linear_attention, *heads, *carried, None, None, **node.attrs)
        return [last], flattened(inner, out)

    (last,), out = _scan(b, size, [state], [flattened(b, x) for x in (q, k, v)], body)
    rw.replace(node, split_heads(b, out, (q.shape or ())[1]), last)
    return True


def window_in_segments(
    node: Node, operands: tuple[Value, Value, Value], w: int, least: int, b: Builder
) -> Value | None:
    """Returns causal attention through a window, in blocks of segments; None where it is not cut.

    Args:
        node: The attention; positions alone hide its keys.
        operands: Its queries, keys and values, of one length.
        w: How far a query sees back.
        least: Positions that a block has at least.
        b: Where to build.
    """
    q, *_ = operands
    batch, H, T, _ = q.shape or ()
    size = segment_size(T)
    if batch != 1 or size is None or size < w or any(x is not None for x in node.inputs[3:]):
        return None
    if q.dtype is not DType.F32 or not is_softmax(node.attrs) or node.attrs["softcap"]:
        return None
    block = next(block for block in range(min(least, size), size + 1) if size % block == 0)
    count = size // block
    rows = np.arange(0, size, block)[:, None] + np.arange(w + block)
    ages = np.arange(block)[:, None] + w - np.arange(w + block)
    seen = np.where((ages >= 0) & (ages <= w), np.float32(0), np.float32(_FAR))[None, None]
    before = np.zeros((count, 1, 1, w + block), np.float32)
    before[0, ..., :w] = _FAR
    attrs = {**node.attrs, "causal_offset": None, "window": (-1, 0)}

    def body(inner: Builder, carried: list[Value], parts: list[Value]) -> tuple[list[Value], Value]:
        is_first, *tails = carried
        joined = [
            inner.op(slicing.concat, tail, part, axis=1)
            for tail, part in zip(tails, parts[1:], strict=True)
        ]
        places = inner.constant(rows, DType.I64)
        cut = [parts[0], *(inner.op(gathering.gather, x, places, axis=1) for x in joined)]
        heads = []
        for x, whole, length in zip(cut, operands, (block, w + block, w + block), strict=True):
            lined = inner.op(reshaping.reshape, x, shape=(count, length, (x.shape or ())[-1]))
            heads.append(split_heads(inner, lined, (whole.shape or ())[1]))
        hidden = inner.op(arithmetic.mul, inner.constant(before, DType.F32), is_first)
        mask = inner.op(arithmetic.add, inner.constant(seen, DType.F32), hidden)
        out = flattened(inner, inner.op(attention.attention, *heads, mask, **attrs))
        out = inner.op(reshaping.reshape, out, shape=(1, size, (out.shape or ())[2]))
        ends = [
            inner.op(slicing.slice_, x, starts=(size,), ends=(size + w,), axes=(1,), steps=(1,))
            for x in joined
        ]
        return [inner.constant(np.zeros(1), DType.F32), *ends], out

    flat = [flattened(b, x) for x in operands]
    none = [
        b.op(
            fill.constant_of_shape, shape=(1, w, (x.shape or ())[2]), value=np.zeros(1, np.float32)
        )
        for x in flat[1:]
    ]
    _, out = _scan(b, size, [b.constant(np.ones(1), DType.F32), *none], flat, body)
    return split_heads(b, out, H)


def _is_static(*operands: Value) -> bool:
    return all(isinstance(size, int) for x in operands for size in (x.shape or ())[1::2])


def _scan(
    b: Builder, size: int, carried: Sequence[Value], parts: Sequence[Value], body: Body
) -> tuple[list[Value], Value]:
    """Returns what is carried at the end, and the results of all segments, [1, T, W]."""
    length = int(str((parts[0].shape or ())[1]))
    count = length // size
    cut = [b.op(reshaping.reshape, x, shape=(count, 1, size, (x.shape or ())[2])) for x in parts]
    graph = Graph(b.graph.scope)
    inner = Builder(graph)
    held = [graph.add_input(None, x.type) for x in carried]
    pieces = [graph.add_input(None, control.slice_type(x.type, 0)) for x in cut]
    going, out = body(inner, held, pieces)
    for i, value in enumerate((*going, out)):
        graph.add_output(f"result_{i}", value)
    *ends, made = b.node(
        control.scan, *carried, *cut, num_outputs=len(going) + 1, bodies=(graph,),
        num_carried=len(going), num_scanned=len(cut), num_captures=0,
        input_axes=(0,) * len(cut), input_reversed=(0,) * len(cut),
        output_axes=(0,), output_reversed=(0,),
    ).outputs  # fmt: skip
    return list(ends), b.op(reshaping.reshape, made, shape=(1, length, (out.shape or ())[2]))


def split_heads(b: Builder, x: Value, heads: DimLike) -> Value:
    """Returns [B, S, H * D] as [B, H, S, D]."""
    B, S, width = x.shape or ()
    size = int(str(width)) // int(str(heads))
    split = b.op(reshaping.reshape, x, shape=(B, S, heads, size))
    return b.op(reshaping.transpose, split, perm=_HEADS_OUTSIDE)


RULES: tuple[LocalRule, ...] = (
    LocalRule("legalize-segments", (linear_attention,), linear_in_segments),
)
"""Before the rules that take kernels: those see one segment."""
