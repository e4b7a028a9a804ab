"""Small f64 arrays that know from which constants they follow, and how.

Decisions read the numbers; only a rewrite asks for the steps, so that a fold of parameters is
recorded rather than its values stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import captured_value, constant_of, weight
from regraft.ir.derive import derive
from regraft.ir.graph import Value
from regraft.ir.steps import (
    Add,
    Cast,
    Div,
    Literal,
    Mul,
    Reshape,
    Source,
    Sqrt,
    Tree,
    children,
    describe,
)
from regraft.ir.types import DType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """Numbers in f64 and their history; arithmetic extends both.

    Args:
        array: f64 of rank 0 or 1.
        made_by: The constant that holds them, their steps, or the next step and its operands; None
            for numbers that follow from nothing.
    """

    array: Array
    made_by: Value | Tree | tuple[type[Mul | Add | Div | Sqrt], tuple[Numbers, ...]] | None = None

    def __mul__(self, other: Numbers) -> Numbers:
        # 1 * x -> x and x * 1 -> x keep the steps short
        if self is ONE or other is ONE:
            return other if self is ONE else self
        return Numbers(self.array * other.array, (Mul, (self, other)))

    def __add__(self, other: Numbers) -> Numbers:
        if self is ZERO or other is ZERO:
            return other if self is ZERO else self
        return Numbers(self.array + other.array, (Add, (self, other)))

    def __truediv__(self, other: Numbers) -> Numbers:
        return Numbers(self.array / other.array, (Div, (self, other)))

    def __neg__(self) -> Numbers:
        return MINUS_ONE * self

    def sqrt(self) -> Numbers:
        """Returns the square roots."""
        return Numbers(np.sqrt(self.array), (Sqrt, (self,)))

    def spread(self, size: int) -> Numbers:
        """Returns the numbers as a vector: one number is repeated."""
        return self if self.array.ndim else Numbers(np.ones(size)) * self

    @property
    def are_ones(self) -> bool:
        """Whether all are 1."""
        return self is ONE or bool((self.array == 1).all())

    @property
    def are_zeros(self) -> bool:
        """Whether all are 0."""
        return self is ZERO or not self.array.any()

    def tree(self) -> Tree:
        """Returns the steps, of type f64; what follows from no parameter is one literal."""
        match self.made_by:
            case None:
                return Literal.of(self.array)
            case Value() as constant:
                found = wide_tree(constant)
                is_shaped = describe(found)[1] == self.array.shape
                return found if is_shaped else shaped(found, self.array.shape)
            case (step, operands):
                trees = [operand.tree() for operand in operands]
                if all(isinstance(tree, Literal) for tree in trees):
                    return Literal.of(self.array)
                return step(*trees)
            case tree:
                return tree


ONE = Numbers(np.ones(()))
MINUS_ONE = Numbers(-np.ones(()))
ZERO = Numbers(np.zeros(()))


def wide_tree(constant: Value) -> Tree:
    """Returns the steps of a constant in f64; those of a literal hold its elements."""
    value: Value | None = constant
    while value is not None and value.producer is None:
        value = captured_value(value)
    producer = None if value is None else value.producer
    if producer is not None and producer.op is weight and producer.graph is not None:
        store = producer.graph.scope.weights
        name = store.resolve(producer.attrs["name"])
        tree = derive(name, store[name])
        return tree if describe(tree)[0] is DType.F64 else Cast(tree, DType.F64)
    array = constant_of(value, 1 << 62)
    if array is None:
        raise AssertionError(f"{constant!r} is no constant")
    return Literal.of(array.astype(np.float64))


def shaped(tree: Tree, shape: tuple[int, ...]) -> Tree:
    """Returns the tree's elements under another shape; a literal stays one."""
    if isinstance(tree, Literal):
        return Literal.of(tree.numpy().reshape(shape))
    return Reshape(tree, shape)


def has_source(tree: Tree) -> bool:
    """Returns whether the tree follows from a stored weight, and is not all numbers."""
    return isinstance(tree, Source) or any(map(has_source, children(tree)))
