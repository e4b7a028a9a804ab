"""Emits Python expressions of PyTorch calls: the table of per-operator emitters and their context.

An emitter returns the expression of its node's result; of several results, one expression each, or
one of a tuple that is unpacked (`torch.topk(x, 3)`). The graph emitter names them, keeps the order,
and prints the lines of `forward`. If, loop and scan are statements: see `control.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from regraft.ir.constants import is_constant
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

if TYPE_CHECKING:
    from regraft.backends.torch.graph_emitter import GraphEmitter

Emitted = str | Sequence[str]


@dataclass(slots=True)
class EmitContext:
    """One IR node under emission.

    Attributes:
        node: The node.
        graph: The `forward` under construction.
    """

    node: Node
    graph: GraphEmitter

    def name(self, value: Value) -> str:
        """Returns the expression of a value: a local variable or an attribute of `self`."""
        return self.graph.expression(value)

    def input(self, idx: int) -> str:
        """Returns the expression of an operand that must be present."""
        value = self.node.inputs[idx]
        if value is None:
            raise AssertionError(f"operand {idx} of `{self.node.op.name}` is absent")
        return self.name(value)

    def optional(self, idx: int) -> str | None:
        """Returns the expression of an operand, or None when it is absent."""
        inputs = self.node.inputs
        value = inputs[idx] if idx < len(inputs) else None
        return None if value is None else self.name(value)

    @property
    def inputs(self) -> list[str]:
        """Expressions of the operands, `None` where absent."""
        return ["None" if v is None else self.name(v) for v in self.node.inputs]

    def attr(self, name: str) -> Any:
        """Returns an attribute of the node."""
        return self.node.attrs[name]

    def size(self, dim: DimLike) -> str:
        """Returns a Python integer expression of a size.

        Symbolic sizes are read from the shape of a live value that has them.
        """
        return self.graph.size(dim)

    def sizes(self, dims: Sequence[DimLike]) -> str:
        """Returns a Python tuple expression of sizes."""
        items = ", ".join(self.size(dim) for dim in dims)
        return f"({items},)" if len(dims) == 1 else f"({items})"

    def number(self, idx: int) -> str:
        """Returns an operand that may be a Python number: `0.5` rather than a constant tensor.

        Only a one-element constant becomes a number, and only beside an operand that is a tensor
        of at least its rank, so that element type and shape of the result stay.
        """
        value = self.node.inputs[idx]
        if value is None:
            raise AssertionError(f"operand {idx} of `{self.node.op.name}` is absent")
        others = [v for i, v in enumerate(self.node.inputs) if i != idx and v is not None]
        if value.rank is not None and any(
            other.rank is not None and other.rank >= value.rank and not is_constant(other)
            for other in others
        ):
            found = self.graph.number(value)
            if found is not None:
                return found
        return self.name(value)

    @property
    def device(self) -> str:
        """Expression of the device on which the module runs, for new tensors."""
        return self.graph.device()

    def temp(self, expression: str, hint: str = "t") -> str:
        """Adds the line `hint = expression` and returns the variable's name."""
        return self.graph.temp(expression, hint)

    def helper(self, function: Callable[..., Any]) -> str:
        """Returns the name of a helper whose source is copied into the generated file.

        Args:
            function: A function of `backends/torch/library`, which needs torch alone and calls
                only functions of its own module.
        """
        return self.graph.helper(function)

    def dtype(self, dtype: DType) -> str:
        """Returns the expression of an element type, `torch.float32`."""
        return self.graph.dtype(dtype)

    def const(self, array: np.ndarray[Any, Any], hint: str = "const") -> str:
        """Returns the expression of a constant tensor on the module's device."""
        return self.graph.constant(array, hint)

    def param(self, name: str) -> str:
        """Returns an *either* parameter: the operand's expression, or of its static content.

        Static sizes are Python tuples or ints, arrays are constant tensors.
        """
        static = self.node.attrs.get(name)
        if static is None:
            value = self.node.operand(name)
            return "None" if value is None else self.name(value)
        if isinstance(static, np.ndarray):
            return self.const(static, name)
        return self.sizes(static) if isinstance(static, tuple) else self.size(static)


Emitter = Callable[[EmitContext], Emitted]


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A node that has no line of its own: the node that uses it says it too."""

    by: Node


class Fusions(Protocol):
    """Expressions of several nodes at once."""

    def find(self, nodes: Sequence[Node]) -> Mapping[Node, Absorbed]:
        """Returns the nodes that others take in."""
        ...

    def emit(self, e: EmitContext, graph: GraphEmitter) -> str | None:
        """Returns the expression of a node together with those it took in, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Emit:
    """How one IR operator is emitted.

    Args:
        spec: The operator; without a row its body is emitted.
        emitter: Returns the expressions of the results.
    """

    spec: OpSpec
    emitter: Emitter


class EmitTable:
    """Emitters by operator, and of several nodes at once.

    Args:
        families: Emitters by operator.
        fusions: Of several nodes; None for those of PyTorch.
    """

    def __init__(self, *families: tuple[Emit, ...], fusions: Fusions | None = None) -> None:
        self.fusions = fusions
        self._rows: dict[OpSpec, Emitter] = {}
        for family in families:
            for item in family:
                if item.spec in self._rows:
                    raise ValueError(f"two emitters for {item.spec.name}")
                self._rows[item.spec] = item.emitter

    def find(self, spec: OpSpec) -> Emitter | None:
        """Returns the emitter of an operator, or None."""
        return self._rows.get(spec)


def call(function: str, *attrs: str, **renamed: str) -> Emitter:
    """Returns an emitter of one call with the operands in order and attributes as keywords.

    Args:
        function: `torch.relu`, `F.silu`.
        attrs: IR attributes passed under their own name.
        renamed: Keyword of the function -> IR attribute.
    """

    def run(e: EmitContext) -> str:
        keywords = [f"{name}={e.attr(name)!r}" for name in attrs]
        keywords += [f"{key}={e.attr(name)!r}" for key, name in renamed.items()]
        return f"{function}({', '.join([*e.inputs, *keywords])})"

    return run
