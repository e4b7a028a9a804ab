"""What is computed alike at every step of a loop, computed for all steps at once.

Values of the same computation, one per step, become one tensor with the steps in front. Sources are
positions of tensors that are stepped through, and values that are the same at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    functions,
    linalg,
    reduce,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.opspec import Trait

_FACTOR_BYTES = 1 << 20
_LEAST = 1e-40
"""What stands for a factor of 0: nothing of any f32 is left, and sums of logarithms stay exact."""
_MOVES = (reshaping.reshape, reshaping.unsqueeze, reshaping.squeeze, reshaping.transpose)
_SUMS = (reduce.reduce_sum, reduce.reduce_mean, reduce.reduce_max)
Values = tuple[Value, ...]


@dataclass(slots=True)
class Lifter:
    """Builds tensors of all steps.

    Args:
        b: Builds them.
        length: Steps.
        source: Gives the tensor [T, ...], or [1, ...] of what is the same at every step; None for
            what is computed at a step.
        states: Values that no tensor of all steps can be made of yet.
        made: What was built.
        reason: Why something could not be.
    """

    b: Builder
    length: DimLike
    source: Callable[[Values], Value | None]
    states: frozenset[Value]
    made: dict[Values, Value] = field(default_factory=dict)
    reason: str = ""

    def of(self, values: Sequence[Value]) -> Value | None:
        """Returns [T, ...] or [1, ...] of the values of all steps, None with a `reason`."""
        key = tuple(values)
        if key in self.made:
            return self.made[key]
        if not self.states.isdisjoint(key):
            self.reason = "its factors or gains depend on the state: it is not linear in it"
            return None
        found = self.source(key) or self._computed(key)
        if found is not None:
            self.made[key] = found
        return found

    def _computed(self, values: Values) -> Value | None:
        nodes = [value.producer for value in values]
        first = nodes[0]
        if first is None or any(
            node is None or node.op is not first.op or not _same(node, first) for node in nodes
        ):
            self.reason = self.reason or "its steps are not alike"
            return None
        columns = zip(*(node.inputs for node in nodes if node is not None), strict=True)
        operands = []
        for column in columns:
            if all(value is None for value in column):
                continue  # an operand whose place an attribute takes
            if any(value is None for value in column):
                self.reason = f"its steps have `{first.op.name}` in a form that is not known"
                return None
            operand = self.of([value for value in column if value is not None])
            if operand is None:
                return None
            operands.append(operand)
        made = self._built(first, operands)
        if made is None:
            self.reason = f"its steps have a `{first.op.name}`"
        return made

    def _built(self, node: Node, operands: list[Value]) -> Value | None:
        b, attrs, rank = self.b, node.attrs, node.output.rank
        if rank is None or any(value.rank is None for value in operands):
            return None
        if Trait.ELEMENTWISE in node.op.traits:
            return b.op(node.op, *(self.with_rank(x, rank) for x in operands), **attrs)
        if node.op is linalg.matmul and all((value.rank or 0) >= 3 for value in operands):
            return b.op(linalg.matmul, *(self.with_rank(x, rank) for x in operands))
        if len(operands) != 1:
            return None
        x, steps = operands[0], (operands[0].shape or ())[0]
        shape = (steps, *(node.output.shape or ()))
        if node.op is reshaping.transpose:
            perm = attrs["perm"] or tuple(reversed(range(rank)))
            return b.op(reshaping.transpose, x, perm=(0, *(axis + 1 for axis in perm)))
        if node.op in _MOVES:
            return b.op(reshaping.reshape, x, shape=shape)
        if node.op is slicing.slice_ and attrs["starts"] and attrs["ends"] and attrs["axes"]:
            moved = tuple(axis % rank + 1 for axis in attrs["axes"])
            return b.op(slicing.slice_, x, **{**attrs, "axes": moved})
        if node.op is repeating.expand:
            return b.op(repeating.expand, self.with_rank(x, rank), shape=shape)
        if node.op in _SUMS and attrs["axes"]:
            inner = (x.rank or 1) - 1
            axes = tuple(axis % inner + 1 for axis in attrs["axes"])
            return b.op(node.op, x, **{**attrs, "axes": axes})
        return None

    def with_rank(self, x: Value, rank: int) -> Value:
        """Returns [T, ...] whose values have a rank, ones put in front of their sizes."""
        missing = rank + 1 - (x.rank or 0)
        if missing <= 0 or x.rank == 0:  # a number goes with everything
            return x
        return self.b.op(reshaping.unsqueeze, x, axes=tuple(range(1, missing + 1)))


def _same(a: Node, b: Node) -> bool:
    if len(a.inputs) != len(b.inputs) or len(a.outputs) != 1 or a.bodies:
        return False
    return all(np.array_equal(x, b.attrs[name]) for name, x in a.attrs.items())


def log_of(b: Builder, x: Value) -> Value | None:
    """Returns the logarithm of numbers that are not negative by how they are made, or None."""
    known = constant_of(x, _FACTOR_BYTES) if is_constant(x) else None
    if known is not None:
        floored = np.log(np.maximum(known, _LEAST, dtype=np.float64))
        return b.constant(floored, x.dtype) if (known >= 0).all() else None
    node = x.producer
    if node is None:
        return None
    first = node.inputs[0]
    if first is None:
        return None
    if node.op is functions.exp:
        return first
    if node.op is activation.sigmoid:  # log sigmoid(x) = -softplus(-x)
        return b.op(arithmetic.neg, b.op(activation.softplus, b.op(arithmetic.neg, first)))
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op is arithmetic.sub and second is not None:
        return _log_of_rest(b, first, second)
    if node.op is arithmetic.mul and second is not None:
        logs = [log_of(b, first), log_of(b, second)]
        return b.op(arithmetic.add, *logs) if all(log is not None for log in logs) else None
    if Trait.DATA_MOVEMENT in node.op.traits and len(node.outputs) == 1:
        inner = None if node.op is slicing.concat else log_of(b, first)
        return None if inner is None else b.op(node.op, inner, *node.inputs[1:], **node.attrs)
    return None


def _log_of_rest(b: Builder, one: Value, x: Value) -> Value | None:
    """Returns log(1 - sigmoid(x)) = -softplus(x), behind what moves it."""
    known, node = constant_of(one, _FACTOR_BYTES), x.producer
    if known is None or not (known == 1).all() or node is None or node.inputs[0] is None:
        return None
    if node.op is activation.sigmoid:
        return b.op(arithmetic.neg, b.op(activation.softplus, node.inputs[0]))
    if Trait.DATA_MOVEMENT in node.op.traits and len(node.outputs) == 1:
        inner = None if node.op is slicing.concat else _log_of_rest(b, one, node.inputs[0])
        return None if inner is None else b.op(node.op, inner, *node.inputs[1:], **node.attrs)
    return None
