"""Where gradients end: `detach`, and regions within `torch.no_grad`."""

from __future__ import annotations

from typing import Any

from regraft.frontends.torch.aliases import Handle
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


def stopped_results(b: Builder, results: Any) -> Any:
    """Returns the results of a region with `stopped` around each; they share memory as before."""
    match results:
        case Handle():
            x = results.read()
            value = stopped(b, x)
            if value is x:
                return results
            return Handle(value, results, lambda x: stopped(b, x), lambda _, written: written)
        case tuple() | list():
            return type(results)(stopped_results(b, each) for each in results)
    return results


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
