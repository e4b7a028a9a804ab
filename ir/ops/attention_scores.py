"""Scores of attention on their way to weights, in standard operators."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, cast, fill, logical, reduce, repeating, reshaping, slicing
from regraft.ir.ops.attention_weights import HIDDEN
from regraft.ir.types import DType


def lowest(dtype: DType) -> float:
    """Returns the least number of a float type."""
    return float(ml_dtypes.finfo(dtype.numpy).min)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores on their way to weights.

    Attributes:
        b: Where to build.
        x: Scores [B, H, S, T], finite where keys are visible.
        shown: Visible keys, bool, broadcasts to the scores; its last axis has size T.
        sizes: B, H, S, T.
        num_sinks: Scores at the end that are no keys.
    """

    b: Builder
    x: Value
    shown: Value
    sizes: tuple[DimLike, DimLike, DimLike, DimLike]
    num_sinks: int = 0

    @property
    def dtype(self) -> DType:
        """The element type of the scores."""
        if self.x.dtype is None:
            raise AssertionError("the body of attention needs an element type")
        return self.x.dtype

    def number(self, value: float) -> Value:
        """Returns a constant of the type of the scores."""
        return self.b.constant(value, self.dtype)

    def zeroed(self, x: Value) -> Value:
        """Returns `x`, 0 where no key is visible."""
        return self.b.op(logical.where, self.shown, x, self.number(0))

    def total(self, x: Value) -> Value:
        """Returns sums over the keys."""
        return self.b.op(reduce.reduce_sum, x, axes=((x.rank or 4) - 1,), keepdims=True)

    def top(self, x: Value) -> Value:
        """Returns maxima over the keys."""
        return self.b.op(reduce.reduce_max, x, axes=((x.rank or 4) - 1,), keepdims=True)

    def share(self, x: Value) -> Value:
        """Returns `x` over its sum; a row of zeros stays."""
        total = self.total(x)
        is_empty = self.b.op(logical.equal, total, self.number(0))
        safe = self.b.op(logical.where, is_empty, self.number(1), total)
        return self.b.op(arithmetic.div, x, safe)

    def keys(self) -> Value:
        """Returns the number of visible keys of each row."""
        count = self.total(self.b.op(cast.cast, self.shown, to=self.dtype))
        if not self.num_sinks:
            return count
        return self.b.op(arithmetic.sub, count, self.number(self.num_sinks))

    def with_sinks(self, sinks: Value) -> Scored:
        """Returns the scores with one more per head."""
        B, H, S, T = self.sizes
        b = self.b
        column = b.op(repeating.expand, self.per_head(sinks), shape=(B, H, S, 1))
        lead = (self.shown.shape or ())[:-1]
        more = b.op(fill.constant_of_shape, shape=(*lead, 1), value=np.ones(1, np.bool_))
        return Scored(
            b,
            b.op(slicing.concat, self.x, column, axis=3),
            b.op(slicing.concat, self.shown, more, axis=len(lead)),
            (B, H, S, T + 1),
            1,
        )

    def first(self, x: Value, count: DimLike) -> Value:
        """Returns the first columns of scores or weights."""
        return self.b.op(slicing.slice_, x, starts=(0,), ends=(count,), axes=(3,), steps=(1,))

    def per_head(self, x: Value) -> Value:
        """Returns [H] lined up with the scores."""
        made = self.b.op(reshaping.reshape, x, shape=(1, self.sizes[1], 1, 1))
        return made if made.dtype is self.dtype else self.b.op(cast.cast, made, to=self.dtype)


def scored(
    b: Builder,
    x: Value,
    mask: Value | None,
    visible: Value | None,
    sizes: tuple[DimLike, DimLike, DimLike, DimLike],
    hidden: float = HIDDEN,
) -> Scored:
    """Returns scores with what hides keys apart from them.

    Args:
        b: Where to build.
        x: [B, H, S, T], float masks added; may be -inf where hidden.
        mask: The float mask that was added, or None.
        visible: What else leaves keys visible, bool, or None.
        sizes: B, H, S, T.
        hidden: The number at and below which the float mask hides.
    """
    shown = visible
    if mask is not None:
        number = b.constant(hidden, mask.dtype)
        above = b.op(logical.greater, mask, number)
        shown = above if shown is None else b.op(logical.logical_and, shown, above)
    if shown is None or (shown.shape or (0,))[-1:] != sizes[3:]:
        every = b.op(fill.constant_of_shape, shape=(1, 1, 1, sizes[3]), value=np.ones(1, np.bool_))
        shown = every if shown is None else b.op(logical.logical_and, shown, every)
    if mask is not None:
        x = b.op(logical.where, shown, x, b.constant(0, x.dtype))
    return Scored(b, x, shown, sizes)
