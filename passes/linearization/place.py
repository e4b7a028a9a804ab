"""One attention that is linearized: what of it goes on, and what replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, cast, fill, logical, reshaping
from regraft.ir.ops.attention_weights import HIDDEN
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.attention.site import Site


@dataclass(frozen=True, slots=True)
class Built:
    """What replaces the result of an attention.

    Attributes:
        out: The replacement, [B, H, S, E].
        linear: Its linear branch by itself, over all keys: what transfer fits; `out` where there
            is no other branch.
        log_weights: Logarithms of the linear branch's weights, [B, H, S, T], hidden keys at
            `NO_WEIGHT`; None where weights may be negative.
        trained: Names of the weights that transfer fits.
    """

    out: Value
    linear: Value
    log_weights: Value | None
    trained: tuple[str, ...]


NO_WEIGHT = -1e4
"""Logarithm of the weight of a hidden key: finite, and 0 after a softmax."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some heads of an attention that was whole before.

    Attributes:
        count: Key heads of the whole.
        heads: Numbers of these key heads in it.
        given: Arrays that were learned for these heads, by name.
    """

    count: int
    heads: tuple[int, ...]
    given: Mapping[str, Any]


@dataclass(slots=True)
class Place(Site):
    """An attention that is linearized.

    Attributes:
        trained: Names of the weights that were added so far.
        part: Where it is some heads of a layer, which; None for all.
    """

    trained: tuple[str, ...] = ()
    part: Part | None = None

    @property
    def prefix(self) -> str:
        """What the names of its weights begin with."""
        return f"attention.{self.number}." + ("" if self.part is None else "heads.")

    @property
    def kv_heads(self) -> int:
        """The number of key heads."""
        return self.heads // self.kv_groups

    @property
    def kv_groups(self) -> int:
        """Query heads per key head."""
        groups: int = self.node.attrs["kv_groups"]
        return groups

    @property
    def is_causal(self) -> bool:
        """Whether a query sees the keys up to its own alone."""
        return self.node.attrs["causal_offset"] is not None and self.node.attrs["window"][1] == 0

    @property
    def keys(self) -> tuple[DimLike, ...]:
        """The sizes of the keys, [B, K, T, D]."""
        return self.operand("k").shape or ()

    @property
    def value_size(self) -> int:
        """Channels per head of the values."""
        size = (self.operand("v").shape or ())[3]
        assert isinstance(size, int), "the pass refuses values of unknown size"
        return size

    def learned(self, name: str, array: Any) -> Value:
        """Adds a weight that transfer fits; heads of a layer that was fitted keep what they have.

        Args:
            name: Of the weight, within the layer.
            array: Its first value, [heads, ...].
        """
        first = array if self.part is None else self.part.given.get(name, array)
        made = ArrayWeight(np.asarray(first, dtype=self.dtype.numpy))
        value = self.b.weight(self.prefix + name, made, Role.PARAM)
        if value.name is None:
            raise AssertionError("a weight has a name")
        self.trained += (value.name,)
        return value

    def visible(self) -> Value | None:
        """Returns which keys are no padding, bool[B, T] or bool[1, T]; None for all."""
        mask = self.node.operand("mask")
        T = self.keys[2]
        found = None
        if mask is not None:
            shape = mask.shape or ()
            lead = shape[0] if len(shape) == 4 else 1
            found = self.b.op(reshaping.reshape, mask, shape=(lead, T))
            if mask.dtype is not DType.BOOL:
                found = self.b.op(logical.greater, found, self.b.constant(HIDDEN, mask.dtype))
        lengths = self.node.operand("kv_lengths")
        if lengths is not None:
            B = (lengths.shape or (1,))[0]
            places = self.b.op(fill.range_, start=0, limit=T, delta=1, dtype=DType.I64)
            ends = self.b.op(reshaping.reshape, lengths, shape=(B, 1))
            inside = self.b.op(logical.less, places, ends)
            found = inside if found is None else self.b.op(logical.logical_and, found, inside)
        return found

    def shown(self, x: Value, visible: Value | None) -> Value:
        """Returns [B, K, T, X] with zeros at hidden keys."""
        if visible is None:
            return x
        rows = (visible.shape or ())[0]
        lined = self.b.op(reshaping.reshape, visible, shape=(rows, 1, self.keys[2], 1))
        return self.b.op(arithmetic.mul, x, self.b.op(cast.cast, lined, to=x.dtype))
