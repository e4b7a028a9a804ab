"""Per-channel affine maps: what batch_norm and arithmetic with constants do along one axis.

`y = scale * x + shift`, both constant along every axis but one. Maps compose; everything is held in
f64, so that a fold rounds once, and knows the constants it follows from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.constants import constant_of, is_constant, weight
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, norm
from regraft.ir.rewrite import Reject
from regraft.ir.types import DType
from regraft.ir.weights import Role
from regraft.passes.cleanup.facts import same_type
from regraft.passes.cleanup.numbers import ONE, ZERO, Numbers

Array = np.ndarray[Any, Any]

AFFINE_OPS = (norm.batch_norm, arithmetic.mul, arithmetic.add, arithmetic.sub, arithmetic.div)

_MAX_BYTES = 1 << 20  # a vector over channels is small


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """`y = scale * x + shift`.

    Args:
        scale: f64[C], or f64[] when it is one number.
        shift: f64[C] or f64[].
        axis: The channel axis (non-negative), None when both are one number.
    """

    scale: Numbers
    shift: Numbers
    axis: int | None

    def then(self, after: Affine) -> Affine | None:
        """Returns the map that applies this one and then `after`, None over different axes."""
        if None not in (self.axis, after.axis) and self.axis != after.axis:
            return None
        return Affine(
            after.scale * self.scale,
            after.scale * self.shift + after.shift,
            after.axis if self.axis is None else self.axis,
        )

    @property
    def is_finite(self) -> bool:
        """Whether no number overflowed or is NaN."""
        return bool(np.isfinite(self.scale.array).all() and np.isfinite(self.shift.array).all())


def affine_of(node: Node) -> tuple[Value, Affine] | Reject | None:
    """Returns what a node maps and how, None when it is of another kind."""
    if node.op is norm.batch_norm:
        return _batch_norm(node)
    if node.op not in AFFINE_OPS:
        return None
    a, b = node.inputs[:2]
    x, constant = (b, a) if is_constant(a) else (a, b)
    if x is None or constant is None or not is_constant(constant) or is_constant(x):
        return None
    if x.dtype is None or not x.dtype.is_float or not same_type(x, node.outputs[0]):
        return None
    found = _vector(constant, len(x.shape or ()))
    return None if found is None else _arithmetic(node, x, constant, *found)


def _arithmetic(
    node: Node, x: Value, constant: Value, numbers: Numbers, axis: int | None
) -> tuple[Value, Affine] | Reject | None:
    constant_first = node.inputs[0] is constant
    is_sum = node.op in (arithmetic.add, arithmetic.sub)
    if is_sum and x.dtype is not None and _rounds(numbers.array, x.dtype):
        return Reject("it is so large that adding it rounds to whole numbers", constant)
    match node.op:
        case arithmetic.mul:
            return x, Affine(numbers, ZERO, axis)
        case arithmetic.add:
            return x, Affine(ONE, numbers, axis)
        case arithmetic.sub if constant_first:
            return x, Affine(-ONE, numbers, axis)
        case arithmetic.sub:
            return x, Affine(ONE, -numbers, axis)
        case arithmetic.div if not constant_first:
            if (numbers.array == 0).any():
                return Reject("it divides by zero", constant)
            return x, Affine(ONE / numbers, ZERO, axis)
        case _:
            return None  # a constant divided by x is not affine


def _rounds(numbers: Array, dtype: DType) -> bool:
    """Returns whether a sum with the numbers keeps no fraction: (x + 1.5 * 2**23) - 1.5 * 2**23.

    That is how some graphs round, so such a sum is not real arithmetic.
    """
    return bool((np.abs(numbers) >= 1 / float_info(dtype).eps).any())


def float_info(dtype: DType) -> Any:
    """Returns numpy's facts about a float type (`eps`, `smallest_normal`)."""
    return ml_dtypes.finfo(dtype.numpy)


def _vector(constant: Value, rank: int) -> tuple[Numbers, int | None] | None:
    """Returns a constant's numbers and the one axis of an x of this rank along which they vary."""
    array = constant_of(constant, _MAX_BYTES)
    if array is None or array.ndim > rank:
        return None
    varying = [axis for axis, size in enumerate(array.shape) if size != 1]
    if len(varying) > 1 or array.size == 0:
        return None
    numbers = array.astype(np.float64).reshape(-1)
    if not varying:
        return Numbers(numbers.reshape(()), constant), None
    return Numbers(numbers, constant), varying[0] + rank - array.ndim


def _batch_norm(node: Node) -> tuple[Value, Affine] | Reject:
    x, *statistics = node.inputs
    arrays = []
    for operand, value in zip(node.op.operands[1:], statistics, strict=True):
        array = constant_of(value, _MAX_BYTES)
        if array is None or value is None:
            return Reject(f"`{operand.name}` is not constant", node)
        arrays.append(Numbers(array.astype(np.float64), value))
    if x is None or x.rank is None or x.rank < 2:
        return Reject("the rank of x is not known", node)
    scale, bias, mean, var = arrays
    with np.errstate(all="ignore"):
        factor = scale / (var + Numbers(np.array(node.attrs["epsilon"], np.float64))).sqrt()
        affine = Affine(factor, bias + -(mean * factor), 1)
    if not affine.is_finite:
        return Reject("its statistics give a scale that is not finite", node)
    return x, affine


def role_of(*values: Value | None) -> Role:
    """Returns PARAM when one of the constants is a parameter, then BUFFER, then CONST."""
    roles = set()
    for value in values:
        producer = None if value is None else value.producer
        if producer is not None and producer.op is weight and producer.graph is not None:
            roles.add(producer.graph.scope.weights.role(producer.attrs["name"]))
    return next((role for role in (Role.PARAM, Role.BUFFER) if role in roles), Role.CONST)
