"""Tensors that are one number everywhere, whatever computes them.

Canonicalize leaves a tensor of a run-time size as it is, and a pass may run before it: the square
root of a constant, a full tensor of the scores' shape, a number that is cast and expanded.
"""

from __future__ import annotations

import math

import numpy as np

from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Node, Value
from regraft.ir.ops import cast, fill, repeating, reshaping
from regraft.ir.opspec import Trait
from regraft.passes.cleanup.facts import is_broadcasting, uniform

_MAX_STEPS = 6

_MOVES = frozenset(
    {
        reshaping.reshape, reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze,
        repeating.expand, repeating.tile, cast.identity,
    }
)  # fmt: skip


def filled(value: Value | None, steps: int = _MAX_STEPS) -> float | None:
    """Returns the number that all elements of a tensor equal, else None.

    NaN is no number here. Of a tensor without elements it is the number that they would be.
    """
    node = None if value is None else value.producer
    if value is None or node is None or value.index:
        return None
    if Trait.CONSTANT in node.op.traits:
        return uniform(value)
    if node.op is fill.constant_of_shape:
        number = float(node.attrs["value"].reshape(-1)[0])
        return None if math.isnan(number) else number
    if type(value.content) is int:  # a size
        return float(value.content)
    if steps == 0:
        return None
    if node.op in _MOVES:
        return filled(node.inputs[0], steps - 1)
    if is_broadcasting(node.op):
        return _computed(node, steps - 1)
    return None


def _computed(node: Node, steps: int) -> float | None:
    """Returns what an element-wise operator makes of numbers."""
    operands = []
    for value in node.inputs:
        number = filled(value, steps)
        if value is None or value.dtype is None or number is None:
            return None
        operands.append(np.asarray(number, value.dtype.numpy))
    try:
        (made,) = evaluate_node(node, operands, {})
    except RegraftError:  # an operator without a numpy meaning
        return None
    found = np.asarray(made)
    if found.size != 1 or found.dtype.kind in "OUSc":
        return None
    number = float(found.reshape(()))
    return None if math.isnan(number) else number
