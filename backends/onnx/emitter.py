"""Emits ONNX nodes from IR: the table of per-operator emitters and the context they work in.

An emitter row lowers one IR operator for a range of opsets; operators without a row use their body,
and operators without either make the emission fail, naming the node and the versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.opspec import Body, OpSpec, Trait

if TYPE_CHECKING:
    from regraft.backends.onnx.graph_emitter import GraphEmitter

Array = np.ndarray[Any, Any]
MIN_OPSET, MAX_OPSET = 13, 26
NEWEST_OPSET = 27
"""What can be asked for; runtimes do not load it by default."""


@dataclass(frozen=True, slots=True)
class Emit:
    """How one IR operator is emitted.

    Args:
        spec: The operator.
        rows: Emitter by the first opset it is valid for; the largest not above the emission opset
            applies. An operator whose first row is above 13 raises the emission opset when it is
            used (`min_opset` below can say that only some uses do).
        min_opset: Least opset that this node needs, when it depends on the node.
        inlined: Whether a node is emitted as its body at an opset for a profile, when it depends
            on the node; else the row at the opset says it.
        raised: Opset by profile to which a use raises the emission opset where none is requested:
            the profile's runtime wants the operator itself, which rows below write out.
    """

    spec: OpSpec
    rows: Mapping[int, Emitter]
    min_opset: Callable[[Node], int] | None = None
    inlined: Callable[[Node, int, str], bool] | None = None
    raised: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class EmitContext:
    """One IR node under emission; what an emitter works with.

    Attributes:
        node: The node.
        opset: The emission opset of ai.onnx.
        profile: `onnx`, `ort-cpu` or `ort-cuda`.
        graph: The graph under construction.
    """

    node: Node
    opset: int
    profile: str
    graph: GraphEmitter

    def name(self, value: Value | None) -> str:
        """Returns the ONNX name of a value ("" when absent)."""
        return "" if value is None else self.graph.names[value]

    @property
    def inputs(self) -> list[str]:
        """ONNX names of the operands, "" where absent, trailing absent ones cut."""
        names = [self.name(value) for value in self.node.inputs]
        while names and not names[-1]:
            names.pop()
        return names

    @property
    def outputs(self) -> list[str]:
        """ONNX names of the results, "" where unused, trailing unused ones cut (not the first)."""
        names = [
            self.name(value) if idx == 0 or value._uses or self.graph.sizes.is_new(value) else ""
            for idx, value in enumerate(self.node.outputs)
        ]
        while len(names) > 1 and not names[-1]:
            names.pop()
        return names

    def emit(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | None = None,
        *,
        domain: str = "",
        **attrs: Any,
    ) -> str:
        """Appends an ONNX node and returns the name of its first result.

        Args:
            op_type: ONNX operator.
            inputs: Operand names.
            outputs: Result names; default: the IR node's.
            domain: ONNX domain.
            attrs: Attributes; None values are left out; DType and numpy arrays are converted.
        """
        return self.graph.emit(
            op_type, inputs, self.outputs if outputs is None else outputs, domain, attrs, self.node
        )

    def temp(self, hint: str = "t") -> str:
        """Returns a fresh name for an intermediate value."""
        return self.graph.fresh(hint)

    def op(self, op_type: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        """Appends an ONNX node with one fresh result and returns its name."""
        return self.emit(op_type, inputs, [self.temp(op_type.lower())], domain=domain, **attrs)

    def const(self, array: Any, dtype: Any = None) -> str:
        """Returns the name of an initializer with this content (equal ones are shared)."""
        return self.graph.constant(np.asarray(array, dtype=dtype))

    def ints(self, values: Sequence[DimLike] | DimLike) -> str:
        """Returns the name of an i64 tensor (1-d, or scalar for one size) with these sizes.

        Symbolic sizes are computed at run time from a value that has them.
        """
        return self.graph.sizes.dims(values)

    def param(self, name: str) -> str:
        """Returns the name of an *either* parameter: the operand's, or of its static content."""
        static = self.node.attrs.get(name)
        if static is None:
            return self.name(self.node.operand(name))
        if isinstance(static, np.ndarray):
            return self.const(static)
        return self.ints(static)

    def body(self, idx: int, captures: Sequence[Value]) -> onnx.GraphProto:
        """Returns a body as a GraphProto whose captures refer to outer names."""
        return self.graph.body(self.node.bodies[idx], captures, self.name(self.node.output))

    def inline(self, body: Body | None = None) -> None:
        """Emits the node as simpler IR operators.

        Args:
            body: Builds them, by default the operator's own body. Its nodes live in a scratch
                graph that reads the node's operands directly; the module is as before afterwards.
        """
        node, graph = self.node, self.graph
        with built_body(node, body) as scratch:
            results = scratch.outputs
            wanted: dict[Value, str] = {}
            for value, result in zip(node.outputs, results, strict=True):
                if result.producer is not None and result.producer.graph is scratch:
                    wanted.setdefault(result, self.name(value))
            for inner in scratch:
                for value in inner.outputs:
                    name = wanted.get(value)
                    graph.names[value] = name or graph.fresh(value.name or inner.op.name)
                graph.emit_node(inner)
            for value, result in zip(node.outputs, results, strict=True):
                if graph.names[result] != self.name(value):
                    graph.emit("Identity", [graph.names[result]], [self.name(value)], "", {})


@contextmanager
def built_body(node: Node, body: Body | None = None) -> Iterator[Graph]:
    """Builds the body of a node in a scratch graph, whose outputs are the node's results.

    The nodes read the operands of `node` directly; afterwards the module is as before.

    Args:
        node: The node.
        body: Builds it; default: the operator's own body.
    """
    build = body or node.op.body
    if build is None or node.graph is None:
        raise AssertionError(f"`{node.op.name}` has no body")
    scratch = Graph(node.graph.scope)
    built = build(node, Builder(scratch, loc=node.loc))
    results = [built] if isinstance(built, Value) else list(built)
    # outputs of the scratch graph are uses: results that nothing else reads are emitted too
    scratch.set_outputs([("", result) for result in results])
    yield scratch
    scratch.set_outputs([])
    for inner in reversed(scratch):
        scratch.erase(inner)


Emitter = Callable[[EmitContext], object]


def direct(op_type: str, *attrs: str, domain: str = "", **renamed: str) -> Emitter:
    """Returns an emitter that maps operands and results one to one and copies attributes.

    Args:
        op_type: ONNX operator.
        attrs: IR attributes copied under their own name.
        domain: ONNX domain.
        renamed: ONNX attribute name -> IR attribute name.
    """

    def run(e: EmitContext) -> None:
        values = {name: e.node.attrs[name] for name in attrs}
        values |= {name: e.node.attrs[ir] for name, ir in renamed.items()}
        e.emit(op_type, e.inputs, domain=domain, **values)

    return run


class EmitTable:
    """Emitter rows by operator."""

    def __init__(self, *families: tuple[Emit, ...]) -> None:
        self.rows: dict[OpSpec, Emit] = {}
        for family in families:
            for row in family:
                if row.spec in self.rows:
                    raise ValueError(f"two emitters for `{row.spec.name}`")
                self.rows[row.spec] = row

    def find(self, spec: OpSpec, opset: int) -> Emitter | None:
        """Returns the emitter of an operator at an opset, by default of its body, or None."""
        row = self.rows.get(spec)
        if row is None:
            return None if spec.body is None else EmitContext.inline
        best = max((since for since in row.rows if since <= opset), default=None)
        return None if best is None else row.rows[best]

    def is_inlined(self, node: Node, opset: int, profile: str) -> bool:
        """Returns whether the node is emitted as its body."""
        row = self.rows.get(node.op)
        if row is not None and row.inlined is not None:
            return row.inlined(node, opset, profile)
        return self.find(node.op, opset) is EmitContext.inline

    def min_opset(self, node: Node) -> int | None:
        """Returns the least opset at which the node can be emitted, None when at none."""
        row = self.rows.get(node.op)
        if row is None:
            return None if node.op.body is None else self._min_opset_of_body(node)
        least = min(row.rows)
        return max(least, row.min_opset(node)) if row.min_opset is not None else least

    def wanted_opset(self, node: Node, profile: str) -> int:
        """Returns the least opset at which the profile's runtime has the node's operator."""
        row = self.rows.get(node.op)
        return MIN_OPSET if row is None else row.raised.get(profile, MIN_OPSET)

    def _min_opset_of_body(self, node: Node) -> int | None:
        with built_body(node) as body:
            needs = [
                self.min_opset(inner) for inner in body if Trait.CONSTANT not in inner.op.traits
            ]
        known = [need for need in needs if need is not None]
        return max(known, default=MIN_OPSET) if len(known) == len(needs) else None
