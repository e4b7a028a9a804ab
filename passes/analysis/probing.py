"""Evaluates cones in f64: the meaning of a spelling, read off from what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Graph, Value
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType, TensorType
from regraft.passes.analysis.cones import Cone

Array = np.ndarray[Any, Any]

EXACT_ERROR = 1e-9
"""Allowed relative error of a spelling whose constants are exact binary fractions."""


def evaluate_cone(cone: Cone, x: Array, vectors: Mapping[Value, Array] | None = None) -> Array:
    """Returns what the cone computes, f64.

    Args:
        cone: The cone.
        x: f64, of any sizes that its operators take.
        vectors: f64, a content for each of `cone.vectors`.
    """
    known: dict[Value, Any] = {cone.x: x, **(vectors or {})}
    for value, number in cone.numbers.items():
        known[value] = np.asarray(_as_type(number, value.dtype))
    for node in sorted(cone.nodes, key=lambda node: node.order):
        operands = [None if v is None else known[v] for v in node.inputs]
        known[node.outputs[0]] = evaluate_node(node, operands, {}, oracle=True)[0]
    result: Array = known[cone.y]
    return result


def _as_type(number: float, dtype: DType | None) -> Any:
    if dtype is None or dtype.is_float:
        return np.float64(number)
    return dtype.numpy.type(number)


def evaluate_operator(op: OpSpec, attrs: Mapping[str, float | bool], x: Array) -> Array:
    """Returns what an operator on one tensor computes, f64."""
    graph = Graph()
    node = graph.create(op, [graph.add_input("x", TensorType(DType.F64, x.shape))], dict(attrs))
    result: Array = evaluate_node(node, [x, *[None] * (len(node.inputs) - 1)], {}, oracle=True)[0]
    return result


def constant_error(cone: Cone) -> float:
    """Returns the relative error that the rounding of the cone's numbers explains.

    Numbers that are surely exact leave none; of others, a few roundings of the coarsest element
    type that holds them. Attributes are f32 in every file.
    """
    error = EXACT_ERROR
    for value, number in cone.numbers.items():
        dtype = value.dtype
        if dtype is not None and dtype.is_float and not _is_exact(number, dtype):
            roundings = 2 if dtype.bits == 16 else 4
            error = max(error, roundings * 2.0 ** -_FRACTION_BITS.get(dtype, 2))
    for node in cone.nodes:
        for held in node.attrs.values():
            if isinstance(held, float) and not _is_exact(held, DType.F32):
                error = max(error, 4 * 2.0 ** -_FRACTION_BITS[DType.F32])
    return error


_FRACTION_BITS = {DType.F64: 52, DType.F32: 23, DType.F16: 10, DType.BF16: 7}


def _is_exact(number: float, dtype: DType) -> bool:
    """Returns whether a number is surely meant as it is stored: an integer or a short fraction.

    Short means less than half of the bits that the element type has.
    """
    if not np.isfinite(number) or abs(number) >= 1e6:
        return True
    return float(number * 2.0 ** (_FRACTION_BITS.get(dtype, 2) // 2 - 1)).is_integer()


def short_number(number: float, dtype: DType | None) -> float:
    """Returns the shortest decimal that the element type does not tell from `number`."""
    if dtype is DType.F64:
        return float(f"{number:.15g}")
    if abs(number) > np.finfo(np.float32).max:
        return number
    return float(str(np.float32(number)))


def snap(number: float, cone: Cone, within: float = 1e-3) -> float:
    """Returns the number of the cone (or its inverse) that a solved parameter stands for.

    Args:
        number: As solved from probes, with their rounding errors.
        cone: The cone.
        within: Largest relative distance.
    """
    best, distance = number, within * abs(number)
    for value, held in cone.numbers.items():
        for candidate in _variants(held):
            if abs(candidate - number) < distance:
                best, distance = short_number(candidate, value.dtype), abs(candidate - number)
    return best


def _variants(number: float) -> Sequence[float]:
    if number == 0:
        return (0.0,)
    return (number, -number, 1 / number, -1 / number)
