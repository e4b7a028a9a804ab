"""Bounds of a gate that are no clip of what its activation reads: behind it, or soft ones."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.graph import Node, Value
from regraft.ir.ops import activation, arithmetic, functions
from regraft.passes.analysis.linear_layers import only_user
from regraft.passes.analysis.unary_functions import Activation
from regraft.passes.cleanup.facts import uniform

_RTOL = 1e-6
"""A limit and its inverse, both rounded to f32."""


@dataclass(frozen=True, slots=True, eq=False)
class SoftCap:
    """limit * tanh(input / limit).

    Args:
        input: What is bounded.
        limit: The limit.
        nodes: What computes it.
    """

    input: Value
    limit: float
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GateBounds:
    """What bounds a gate whose activation reads it as it is.

    Args:
        kind: `clip_after` or `soft`, as of the operator `moe`.
        limit: Of the gate.
        output: The gate behind activation and limit.
        nodes: What bounds it.
        values: The limit of what the gate multiplies, None where another place says it.
    """

    kind: str
    limit: float
    output: Value
    nodes: tuple[Node, ...]
    values: float | None = None


def bounded_gate(found: Activation) -> GateBounds | None:
    """Returns what bounds a gate behind or beside its activation, or None."""
    node = only_user(found.output)
    if node is None:
        return None
    if node.op is activation.clip and node.inputs[1] is None and node.inputs[2] is None:
        low, high = node.attrs["min"], node.attrs["max"]
        if low is not None or high is None or high <= 0:
            return None
        return GateBounds("clip_after", float(high), node.output, (node,))
    if node.op is not arithmetic.mul or found.function.name != "sigmoid":
        return None
    other = node.inputs[1] if node.inputs[0] is found.output else node.inputs[0]
    cap = None if other is None else soft_cap(other)
    if cap is None or cap.input is not found.input:
        return None
    return GateBounds("soft", cap.limit, node.output, (node, *cap.nodes))


def soft_cap(value: Value) -> SoftCap | None:
    """Returns how a value is softly bounded, or None."""
    outer = value.producer
    scaled = None if outer is None else _scaled(outer)
    if scaled is None or outer is None or outer.op is not arithmetic.mul:
        return None
    inner, limit = scaled
    tanh = inner.producer
    if tanh is None or tanh.op is not functions.tanh or tanh.inputs[0] is None:
        return None
    divided = tanh.inputs[0].producer
    scaled = None if divided is None else _scaled(divided)
    if scaled is None or divided is None or limit <= 0:
        return None
    source, number = scaled
    own = number if divided.op is arithmetic.div else 1 / number
    if abs(own - limit) > _RTOL * limit or only_user(inner) is not outer:
        return None
    return SoftCap(source, limit, (outer, tanh, divided))


def _scaled(node: Node) -> tuple[Value, float] | None:
    """Returns x and c of x * c or x / c."""
    if node.op not in (arithmetic.mul, arithmetic.div):
        return None
    for x, factor in (node.inputs[:2], node.inputs[1::-1])[: 2 if node.op is arithmetic.mul else 1]:
        number = uniform(factor)
        if x is not None and number:
            return x, float(number)
    return None
