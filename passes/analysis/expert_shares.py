"""The weight of each expert for every token, in the forms that layers of experts have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import fill, repeating
from regraft.passes.analysis.expert_norms import ResultNorm
from regraft.passes.analysis.linear_layers import MOVES, picking_of
from regraft.passes.analysis.moe_layers import MoeBlock


@dataclass(frozen=True, slots=True, eq=False)
class DenseWeights:
    """One weight per expert and token.

    Args:
        value: The weights; axes of size 1 aside, the tokens in order and the experts.
        axis: That of the experts, counted from the end.
    """

    value: Value
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class PlacedWeights:
    """For every expert the weights of the tokens that it picks.

    Args:
        tokens: By expert, i64[n, 1] or i64[n], the tokens.
        weights: By expert, [n] or [n, 1].
        factor: What they all are multiplied by.
    """

    tokens: tuple[Value, ...]
    weights: tuple[Value, ...]
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class ColumnWeights:
    """For every expert its weight for every token.

    Args:
        columns: By expert, [*b, 1], the tokens in order.
    """

    columns: tuple[Value, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChosenWeights:
    """For every choice of a token its expert and its weight, token by token.

    Args:
        experts: i64, as many as there are choices.
        weights: As many.
        top_k: Choices of a token.
    """

    experts: Value
    weights: Value
    top_k: int


@dataclass(frozen=True, slots=True, eq=False)
class SortedWeights:
    """For every row, sorted by expert, whose it is and its weight, and how rows become tokens.

    Args:
        owners: bool[E, rows].
        weights: [rows, 1].
        steps: What makes tokens of the weighted rows, in order: nodes that do the same to all
            channels.
        top_k: Rows of a token, None when that is not known.
    """

    owners: Value
    weights: Value
    steps: tuple[Node, ...]
    top_k: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ExpertSum:
    """A layer of experts.

    Args:
        block: As recognition found it.
        output: The weighted sum.
        tokens: What experts read, tokens in order and channels, moves aside.
        num_tokens: How many.
        weights: The weight of each expert for every token.
        weigh_input: Whether they multiply what experts read.
        norm: Of what experts give, in front of their weights.
    """

    block: MoeBlock
    output: Value
    tokens: Value
    num_tokens: DimLike
    weights: DenseWeights | PlacedWeights | ColumnWeights | ChosenWeights | SortedWeights
    weigh_input: bool = False
    norm: ResultNorm | None = None


def other_operand(node: Node, value: Value) -> Value:
    """Returns the other operand of a product or sum of two."""
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    assert other is not None, "a product has two operands"
    return other


def is_one(value: Value, axis: int) -> bool:
    """Returns whether an axis, counted from the end, has size 1."""
    shape = value.shape
    return shape is not None and len(shape) >= -axis and shape[axis] == 1


def is_zero(value: Value | None) -> bool:
    """Returns whether a sum begins at zero; what depends on the data does not."""
    if value is None:
        return False
    node = value.producer
    if node is not None and node.op is repeating.expand:
        return is_zero(node.inputs[0])
    if node is not None and node.op is fill.constant_of_shape:
        return not np.any(node.attrs["value"])
    if not is_constant(value):
        return False
    array = constant_of(value, 1 << 30)
    return array is not None and not array.any()


def root_of(value: Value) -> Value:
    """Returns what a value is made of by moves."""
    node = value.producer
    while node is not None and node.op in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer
    return value


def is_row_of_table(value: Value, picked: Value | None = None) -> bool:
    """Returns whether a value holds, row by row, what a constant has for an expert.

    Args:
        value: The value.
        picked: The indices that pick, None for any.
    """
    node = picking_of(root_of(value), max_rank=2)
    if node is None or node.inputs[0] is None or not is_constant(node.inputs[0]):
        return False
    return picked is None or node.inputs[1] is picked
