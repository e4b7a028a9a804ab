"""Where gradients end: `detach`.

Regions within `torch.no_grad` are imported as if gradients went through them: what is exported of a
model whose whole `forward` is such a region is to train, too. So are tensors that share memory with
one that is written to: what was written has the gradient of what it was written over.
"""

from __future__ import annotations

import torch

from regraft.frontends.torch.nodes import storage_of, written_arguments
from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.constants import weight as weight_op
from regraft.ir.graph import Value
from regraft.ir.ops.cast import stop_gradient
from regraft.ir.types import TensorType
from regraft.ir.weights import Role


def stopped(b: Builder, x: Value) -> Value:
    """Returns a value through which no gradient goes: itself where none could."""
    return b.op(stop_gradient, x) if _is_differentiable(x) else x


def _is_differentiable(x: Value) -> bool:
    """Whether a gradient by a parameter or an input of a float type could go through a value.

    Cost: O(nodes) that it is computed from.
    """
    seen: set[Value] = set()
    pending = [x]
    while pending:
        value = pending.pop()
        if value in seen or not _is_float(value):
            continue
        seen.add(value)
        producer = value.producer
        if producer is None or producer.bodies:  # an input; what bodies capture is not followed
            return True
        if producer.op is weight_op:
            if producer.graph is None:
                raise AssertionError("a weight node outside a graph")
            if producer.graph.scope.weights.role(producer.attrs["name"]) is Role.PARAM:
                return True
        elif not is_constant(value) and producer.op is not stop_gradient:
            pending += [each for each in producer.inputs if each is not None]
    return False


def _is_float(value: Value) -> bool:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype is None:
        return True
    return type_.dtype.is_float or type_.dtype.is_complex


def is_written(node: torch.fx.Node) -> bool:
    """Whether a call of a node's graph writes to memory that its result shares."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return False
    shared = storage_of(val)
    return any(
        isinstance(given := each.meta.get("val"), torch.Tensor) and storage_of(given) == shared
        for other in node.graph.nodes
        for each in written_arguments(other)
    )
