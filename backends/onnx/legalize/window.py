"""Attention through a narrow window, in blocks: what no query sees is not computed.

Queries of a block see keys of their own block and the w positions before it, w being as far as the
window reaches. Blocks become rows of the batch, in the order of memory [B, S, H * D]: gathering
their keys copies whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.backends.onnx.legalize.attention import flattened
from regraft.backends.onnx.legalize.segments import split_heads, window_in_segments
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    attention,
    fill,
    gathering,
    logical,
    repeating,
    reshaping,
    sizes,
    slicing,
)
from regraft.ir.ops.attention_weights import is_softmax
from regraft.ir.rewrite import LocalRule, Reject, Rewriter
from regraft.ir.types import DType

_GAIN = 4
"""Blocks pay where the sequence is this many times as long as a window."""

_BLOCK = 64
"""Blocks of narrow windows are twice as long as these, up to here: measured at 32 to 128."""

_NARROW = 64
"""Windows of which a block costs little even where the sequence is shorter than that."""

_FAR = -1e9
"""What hides a key: added, because the kernel turns truth values into numbers for every head."""


def in_blocks(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes blocks where positions alone hide keys, and hide most of them."""
    q, k, v, mask, lengths, _, offset, _, gates = node.inputs
    left, right = node.attrs["window"]
    if left <= 0 or right != 0 or node.attrs["causal_offset"] != 0:
        return False
    if any(x is not None for x in (mask, lengths, offset, gates)):
        return Reject("a mask or lengths hide keys too")
    if q is None or k is None or v is None or None in (q.shape, k.shape, v.shape):
        return False
    T = (q.shape or ())[2]
    if node.attrs["modifier"] != "none" or (k.shape or ())[2] != T:
        return Reject("queries and keys are not those of one sequence")
    if isinstance(T, int) and _GAIN * left > T:
        return Reject("the sequence is not much longer than the window")
    if not isinstance(T, int) and left > _NARROW:
        return Reject("the sequence is not known to be much longer than the window")
    if not all(isinstance((x.shape or ())[i], int) for x in (q, k, v) for i in (1, 3)):
        return Reject("the number of heads or channels is known at run time only")
    rw.replace(node, _build(node, (q, k, v), left, T, rw.builder(node)))
    return True


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How positions are cut.

    Attributes:
        b: Where to build.
        T: Positions.
        size: Positions of a block.
        w: How far a query sees back.
        length: T as a value, i64 scalar; None where it is static.
    """

    b: Builder
    T: DimLike
    size: int
    w: int
    length: Value | None

    @property
    def count(self) -> DimLike:
        """Returns the number of blocks."""
        return (self.T + (self.size - 1)) // self.size

    def queries(self, x: Value) -> Value:
        """Returns [B, T, C] as [B * N, size, C]; what fills the last block up is never read."""
        B, _, C = x.shape or ()
        if not isinstance(self.T, int) or self.T % self.size:
            x = self._rows(x, 0, self.size)
        return self.b.op(reshaping.reshape, x, shape=(B * self.count, self.size, C))

    def keys(self, x: Value) -> Value:
        """Returns [B, T, C] as [B * N, w + size, C]; rows before the first one are hidden later."""
        B, _, C = x.shape or ()
        made = self._rows(x, -self.w, self.w + self.size)
        return self.b.op(reshaping.reshape, made, shape=(B * self.count, self.w + self.size, C))

    def _rows(self, x: Value, first: int, count: int) -> Value:
        """Returns rows of [B, T, C] from `first` on relative to every block, [B, N, count, C]."""
        b = self.b
        starts = b.op(reshaping.unsqueeze, self.range(0, self.count, self.size), axes=(1,))
        rows = b.op(arithmetic.add, starts, self.range(first, first + count))
        one = b.constant(1, DType.I64)
        length = b.constant(self.T, DType.I64) if self.length is None else self.length
        last = b.op(arithmetic.sub, length, one)
        rows = b.op(arithmetic.min_, b.op(arithmetic.max_, rows, b.constant(0, DType.I64)), last)
        return b.op(gathering.gather, x, rows, axis=1)

    def range(self, start: int, limit: DimLike, step: int = 1) -> Value:
        """Returns i64[limit - start] of numbers, each times `step`."""
        found = self.b.op(fill.range_, start=start, limit=limit, delta=1, dtype=DType.I64)
        if step == 1:
            return found
        return self.b.op(arithmetic.mul, found, self.b.constant(step, DType.I64))

    def seen(self) -> Value:
        """Returns which keys queries see, bool[N, 1, size, w + size]."""
        b, w = self.b, self.w
        rows = b.op(reshaping.unsqueeze, self.range(w, w + self.size), axes=(1,))
        columns = self.range(0, w + self.size)
        far = b.op(arithmetic.sub, rows, b.constant(w, DType.I64))
        near = b.op(
            logical.logical_and,
            b.op(logical.less_or_equal, columns, rows),
            b.op(logical.greater_or_equal, columns, far),
        )
        later = b.op(logical.greater, self.range(0, self.count), b.constant(0, DType.I64))
        later = b.op(reshaping.reshape, later, shape=(self.count, 1, 1, 1))
        own = b.op(logical.greater_or_equal, columns, b.constant(w, DType.I64))
        return b.op(logical.logical_and, near, b.op(logical.logical_or, later, own))


def _build(
    node: Node, operands: tuple[Value, Value, Value], w: int, T: DimLike, b: Builder
) -> Value:
    block = max(w, min(_BLOCK, 2 * w))
    segmented = window_in_segments(node, operands, w, block, b)
    if segmented is not None:
        return segmented
    length = None
    if isinstance(T, Dim):
        axis = b.op(sizes.shape, operands[0], start=2, end=3)
        length = b.op(reshaping.reshape, axis, shape=())
    cut = _Blocks(b, T, block, w, length)
    q, k, v = (flattened(b, x) for x in operands)
    pieces = (cut.queries(q), cut.keys(k), cut.keys(v))
    heads = [
        split_heads(b, x, (given.shape or ())[1]) for x, given in zip(pieces, operands, strict=True)
    ]
    mask, attrs = cut.seen(), node.attrs
    if operands[0].dtype is DType.F32 and is_softmax(attrs) and not attrs["softcap"]:
        near, far = (b.constant(number, DType.F32) for number in (0.0, _FAR))
        mask = b.op(logical.where, mask, near, far)
    B = (operands[0].shape or ())[0]
    if B != 1:
        mask = b.op(repeating.tile, mask, repeats=(B, 1, 1, 1))
    inputs = [*heads, mask, None, node.inputs[5], None, *node.inputs[7:]]
    attrs = {**attrs, "causal_offset": None, "window": (-1, 0)}
    out = b.op(attention.attention, *inputs, **attrs)
    _, H, _, E = out.shape or ()
    lined = b.op(reshaping.transpose, out, perm=(0, 2, 1, 3))
    width = int(str(H)) * int(str(E))
    merged = b.op(reshaping.reshape, lined, shape=(B * cut.count, cut.size, width))
    whole = b.op(reshaping.reshape, merged, shape=(B, cut.count * cut.size, width))
    if cut.count * cut.size != T:
        whole = b.op(slicing.slice_, whole, starts=(0,), ends=(T,), axes=(1,), steps=(1,))
    split = b.op(reshaping.reshape, whole, shape=(B, T, H, E))
    return b.op(reshaping.transpose, split, perm=(0, 2, 1, 3))


RULES: tuple[LocalRule, ...] = (LocalRule("legalize-window", (attention.attention,), in_blocks),)
"""For ONNX Runtime, whose kernels compute all scores or read a mask of all."""
