"""Whether a value may hold -inf: what an added mask says about rows without a visible key."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import Trait
from regraft.ir.types import DType

_MAX_NODES = 64
_MAX_BYTES = 1 << 22

_SAFE = frozenset(
    {
        "matmul", "gemm", "einsum", "conv", "layer_norm", "rms_norm", "batch_norm", "group_norm",
        "softmax", "sigmoid", "tanh", "sin", "cos", "sqrt", "abs", "floor", "ceil", "round", "relu",
        "gelu",
    }
)  # fmt: skip
"""Results that are ordinary numbers unless something overflows."""

_CLOSED = frozenset(
    {"add", "sub", "mul", "max", "min", "clip", "where", "neg", "reduce_sum", "reduce_mean"}
)
"""Results that are ordinary numbers where the operands are."""


def may_be_infinite(value: Value) -> bool:
    """Returns whether an element may be infinite; True when it cannot be told.

    Overflow and values that only make no sense (NaN) aside. Cost: O(nodes looked at), at most 64.
    """
    seen: set[Node] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        dtype = current.dtype
        if dtype is DType.BOOL or (dtype is not None and dtype.is_integer):
            continue
        node = current.producer
        if node is None:
            return True
        if node in seen:
            continue
        seen.add(node)
        if len(seen) > _MAX_NODES or not _is_harmless(node):
            return True
        name = node.op.name
        if Trait.CONSTANT in node.op.traits or name in _SAFE:
            continue
        if name == "cast" and _narrows(node):
            return True
        if name == "where":
            stack.extend(v for v in node.inputs[1:] if v is not None)
        elif name in ("gather", "gather_elements", "gather_nd", "slice", "reshape", "expand"):
            stack.extend(v for v in node.inputs[:1] if v is not None)
        else:
            stack.extend(v for v in node.inputs if v is not None)
    return False


def holds_lowest(value: Value) -> bool:
    """Returns whether an added mask surely may hold the lowest float of its type.

    A row of it is a row of equal scores, but runtimes that take the lowest number for -inf give 0.
    """
    seen: set[Node] = set()
    stack = [value]
    while stack and len(seen) < _MAX_NODES:
        current = stack.pop()
        node = current.producer
        if node is None or node in seen or current.dtype is None or not current.dtype.is_float:
            continue
        seen.add(node)
        if Trait.CONSTANT not in node.op.traits:
            if node.op.name not in _SAFE:
                stack.extend(v for v in node.inputs if v is not None)
            continue
        array = constant_of(current, _MAX_BYTES)
        lowest = float(ml_dtypes.finfo(current.dtype.numpy).min)
        if array is not None and array.size and float(array.min()) == lowest:
            return True
    return False


def _is_harmless(node: Node) -> bool:
    op = node.op
    if Trait.CONSTANT in op.traits:
        array = constant_of(node.outputs[0], _MAX_BYTES)
        return array is not None and bool(np.isfinite(array.astype(np.float64)).all())
    if op.name == "constant_of_shape":
        return bool(np.isfinite(np.asarray(node.attrs["value"], np.float64)).all())
    return (
        op.name in _SAFE
        or op.name in _CLOSED
        or op.name in ("cast", "div", "range", "trilu")
        or Trait.DATA_MOVEMENT in op.traits
    ) and (op.name != "div" or _divides_by_number(node))


def _divides_by_number(node: Node) -> bool:
    array = constant_of(node.inputs[1], _MAX_BYTES)
    return array is not None and bool((array != 0).all())


def _narrows(node: Node) -> bool:
    """Whether a cast may round a large number to infinity."""
    x, to = node.inputs[0], node.attrs["to"]
    return x is not None and x.dtype is not None and x.dtype.is_float and x.dtype.bits > to.bits
