"""One attention operator as its variants see it: operands to change, sizes, weights to add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    attention,
    cast,
    fill,
    functions,
    linalg,
    logical,
    norm,
    reduce,
    reshaping,
    response_norm,
)
from regraft.ir.ops.attention_body import visible_mask
from regraft.ir.ops.attention_weights import HIDDEN
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role

_SLOTS = {
    "q": 0, "k": 1, "v": 2, "mask": 3, "kv_lengths": 4, "sinks": 5, "causal_offset": 6,
    "alpha": 7, "gates": 8,
}  # fmt: skip


@dataclass(slots=True)
class Site:
    """An `attention` that is being rewritten.

    Attributes:
        node: The operator.
        number: Which attention of the module it is, from 0; part of the names of its weights.
        b: Builds before it.
    """

    node: Node
    number: int
    b: Builder

    @property
    def dtype(self) -> DType:
        """The element type of the queries."""
        dtype = self.operand("q").dtype
        if dtype is None:
            raise AssertionError("a site has an element type")
        return dtype

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return _static(self.shape[1])

    @property
    def shape(self) -> tuple[DimLike, ...]:
        """The sizes of the queries, [B, H, S, D]."""
        return self.operand("q").shape or ()

    @property
    def size(self) -> int:
        """Channels per query head."""
        return _static(self.shape[3])

    def operand(self, name: str) -> Value:
        """Returns an operand that is present."""
        value = self.node.operand(name)
        if value is None:
            raise AssertionError(f"the attention has no `{name}`")
        return value

    def attend(self, operands: dict[str, Value] | None = None, **attrs: Any) -> Value:
        """Builds the operator with some operands and attributes changed."""
        inputs = list(self.node.inputs)
        for name, value in (operands or {}).items():
            inputs[_SLOTS[name]] = value
        return self.b.op(attention.attention, *inputs, **{**self.node.attrs, **attrs})

    def weigh(
        self, normalizer: str, *parameters: float, scale: float | None = None, **operands: Value
    ) -> Value:
        """Builds the operator with another normalizer, whose sums are taken in f32 at least."""
        return self.attend(
            operands,
            normalizer=normalizer,
            normalizer_parameters=tuple(map(float, parameters)),
            softmax_dtype=self.wide,
            scale=self.node.attrs["scale"] if scale is None else scale,
        )

    @property
    def wide(self) -> DType | None:
        """The element type of sums over keys: f32 at least."""
        if self.dtype in (DType.F16, DType.BF16):
            return DType.F32
        dtype: DType | None = self.node.attrs["softmax_dtype"]
        return dtype

    def number_of(self, value: float) -> Value:
        """Returns a constant of the element type."""
        return self.b.constant(value, self.dtype)

    def parameter(self, name: str, array: Any) -> Value:
        """Adds a weight that training fits."""
        made = ArrayWeight(np.asarray(array, dtype=self.dtype.numpy))
        return self.b.weight(f"attention.{self.number}.{name}", made, Role.PARAM)

    def per_head(self, x: Value) -> Value:
        """Returns [H] lined up with the queries."""
        return self.b.op(reshaping.reshape, x, shape=(1, self.heads, 1, 1))

    def mul(self, x: Value, y: Value) -> Value:
        """Returns a product."""
        return self.b.op(arithmetic.mul, x, y)

    def add(self, x: Value, y: Value) -> Value:
        """Returns a sum."""
        return self.b.op(arithmetic.add, x, y)

    def dot(self, x: Value, weights: Value) -> Value:
        """Returns the products of [B, H, S, D] with one vector per head, [H, D], as [B, H, S]."""
        column = self.b.op(reshaping.reshape, weights, shape=(1, self.heads, self.size, 1))
        made = self.b.op(linalg.matmul, x, column)
        return self.b.op(reshaping.reshape, made, shape=self.shape[:3])

    def sigmoid(self, x: Value) -> Value:
        """Returns 1 / (1 + exp(-x))."""
        return self.b.op(activation.sigmoid, x)

    def tanh(self, x: Value) -> Value:
        """Returns the hyperbolic tangent."""
        return self.b.op(functions.tanh, x)

    def unit(self, x: Value) -> Value:
        """Returns vectors of length 1 along the last axis."""
        return self.b.op(response_norm.lp_norm, x, axis=-1, p=2)

    def rms_norm(self, x: Value, gain: Value) -> Value:
        """Returns vectors of mean square 1 along the last axis, times a gain [D]."""
        return self.b.op(norm.rms_norm, x, gain, axis=-1, epsilon=1e-6)

    def log_keys(self) -> Value:
        """Returns the logarithm of the number of visible keys of every query, at least of 1.

        Broadcasts to [B, H, S, 1].
        """
        b, node = self.b, self.node
        T = (self.operand("k").shape or ())[2]
        mask, lengths, offset = (node.operand(n) for n in ("mask", "kv_lengths", "causal_offset"))
        visible = visible_mask(b, node.attrs, (self.shape[2], T), lengths, offset)
        if mask is not None:
            is_bool = mask.dtype is DType.BOOL
            own = mask if is_bool else b.op(logical.greater, mask, b.constant(HIDDEN, mask.dtype))
            visible = own if visible is None else b.op(logical.logical_and, visible, own)
        if visible is None and isinstance(T, int):
            return self.number_of(float(np.log(max(T, 1))))
        if visible is None or (visible.shape or (0,))[-1:] != (T,):
            every = b.op(fill.constant_of_shape, shape=(T,), value=np.ones(1, np.bool_))
            visible = every if visible is None else b.op(logical.logical_and, visible, every)
        counted = b.op(cast.cast, visible, to=DType.F32)
        counted = b.op(reduce.reduce_sum, counted, axes=((counted.rank or 1) - 1,), keepdims=True)
        count = b.op(arithmetic.max_, counted, b.constant(1.0, DType.F32))
        logs = b.op(functions.log, count)
        return logs if self.dtype is DType.F32 else b.op(cast.cast, logs, to=self.dtype)


def _static(size: DimLike) -> int:
    assert isinstance(size, int), "a site has a static number of heads and of channels"
    return size
