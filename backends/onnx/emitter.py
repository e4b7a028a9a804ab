"""Emits ONNX nodes from IR: the table of per-operator emitters and the context they work in.

An emitter row lowers one IR operator for a range of opsets; operators without a row use their body,
and operators without either make the emission fail, naming the node and the versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from regraft.backends.onnx.storage import Deduplicator, Embedded, Storage
from regraft.backends.onnx.tensors import array_to_tensor
from regraft.ir.builder import Builder
from regraft.ir.constants import Blob
from regraft.ir.dims import Dim, DimLike, DimOp, Symbol
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.opspec import Body, OpSpec
from regraft.ir.weights import Weight

Array = np.ndarray[Any, Any]
MIN_OPSET, MAX_OPSET = 13, 26


@dataclass(frozen=True, slots=True)
class Emit:
    """How one IR operator is emitted.

    Args:
        spec: The operator.
        rows: Emitter by the first opset it is valid for; the largest not above the emission opset
            applies. An operator whose first row is above 13 raises the emission opset when it is
            used (`min_opset` below can say that only some uses do).
        min_opset: Least opset that this node needs, when it depends on the node.
    """

    spec: OpSpec
    rows: Mapping[int, Emitter]
    min_opset: Callable[[Node], int] | None = None


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
            self.name(value) if idx == 0 or value._uses or self.graph.shows_new_size(value) else ""
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
        return self.graph.dims(values)

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
        return self.graph.body(self.node.bodies[idx], captures, self)

    def inline(self, body: Body | None = None) -> None:
        """Emits the node as simpler IR operators.

        Args:
            body: Builds them, by default the operator's own body. Its nodes live in a scratch
                graph that reads the node's operands directly; the module is as before afterwards.
        """
        from regraft.backends.onnx.save import emit_node  # noqa: PLC0415

        node, graph = self.node, self.graph
        build = body or node.op.body
        if build is None or node.graph is None:
            raise AssertionError(f"`{node.op.name}` has no body")
        scratch = Graph(node.graph.scope)
        built = build(node, Builder(scratch, loc=node.loc))
        results = [built] if isinstance(built, Value) else list(built)
        # outputs of the scratch graph are uses: results that nothing else reads are emitted too
        scratch.set_outputs([("", result) for result in results])
        wanted: dict[Value, str] = {}
        for value, result in zip(node.outputs, results, strict=True):
            if result.producer is not None and result.producer.graph is scratch:
                wanted.setdefault(result, self.name(value))
        for inner in scratch:
            for value in inner.outputs:
                graph.names[value] = wanted.get(value) or graph.fresh(value.name or inner.op.name)
            emit_node(EmitContext(inner, self.opset, self.profile, graph))
            for value in inner.outputs:
                graph.note_sizes(value)
        for value, result in zip(node.outputs, results, strict=True):
            if graph.names[result] != self.name(value):
                graph.emit("Identity", [graph.names[result]], [self.name(value)], "", {})
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
        """Returns the emitter of an operator at an opset, or None."""
        row = self.rows.get(spec)
        if row is None:
            return None
        best = max((since for since in row.rows if since <= opset), default=None)
        return None if best is None else row.rows[best]

    def min_opset(self, node: Node) -> int | None:
        """Returns the least opset at which the node can be emitted, None when at none."""
        row = self.rows.get(node.op)
        if row is None:
            return None
        least = min(row.rows)
        return max(least, row.min_opset(node)) if row.min_opset is not None else least


@dataclass(slots=True)
class GraphEmitter:
    """One ONNX graph under construction."""

    table: EmitTable
    opset: int
    profile: str
    parent: GraphEmitter | None = None
    names: dict[Value, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    shared: dict[Any, str] = field(default_factory=dict)
    sources: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    storage: Storage = field(default_factory=Embedded)
    stored: dict[str, str] = field(default_factory=dict)
    duplicates: Deduplicator = field(default_factory=Deduplicator)

    def fresh(self, hint: str) -> str:
        """Returns an unused name that starts with `hint`."""
        name, number = hint, 0
        while name in self.taken:
            number += 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name

    def emit(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str,
        attrs: Mapping[str, Any],
        node: Node | None = None,
    ) -> str:
        """Appends an ONNX node; see `EmitContext.emit`."""
        proto = onnx.NodeProto(op_type=op_type, input=inputs, output=outputs)
        proto.name = self.fresh(f"node_{outputs[0]}" if outputs else op_type)
        if domain:
            proto.domain = domain
            self.domains.add(domain)
        for key, value in attrs.items():
            if value is not None:
                proto.attribute.append(make_attribute(key, value))
        self.nodes.append(proto)
        return outputs[0]

    def constant(self, array: Array) -> str:
        """Returns the name of an initializer with this content, shared between equal ones."""
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if array.dtype == object:
            key = (array.dtype.str, "", array.shape, tuple(array.reshape(-1)))  # type: ignore[assignment]
        found = self.shared.get(key)
        if found is None:
            found = self.shared[key] = self.fresh("const")
            self.initializers.append(array_to_tensor(array, found))
        return found

    @property
    def root(self) -> GraphEmitter:
        """The emitter of the main graph."""
        return self if self.parent is None else self.parent.root

    def weight(self, stored_name: str, weight: Weight, hint: str) -> str:
        """Returns the name of the initializer of a weight, one for equal contents.

        Initializers stand in the main graph, whose names bodies see.
        """
        root = self.root
        found = root.stored.get(stored_name)
        if found is None:
            found = root.duplicates.find(weight, hint)
            if found is None:
                found = hint
                root.initializers.append(root.storage.tensor(weight, hint))
            root.stored[stored_name] = found
        return found

    def note_sizes(self, value: Value) -> None:
        """Remembers where the symbols in a value's shape can be read at run time."""
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.name not in self.sources:
                self.sources[symbol.name] = (self.names[value], axis, len(value.shape or ()))

    def shows_new_size(self, value: Value) -> bool:
        """Returns whether a size that only run time knows can be read from `value` first.

        Size attributes may speak of it although nothing uses the value's elements.
        """
        for dim in value.shape or ():
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.defined and symbol.name not in self.sources:
                return True
        return False

    def dims(self, values: Sequence[DimLike] | DimLike) -> str:
        """Returns the name of an i64 tensor holding the sizes; see `EmitContext.ints`."""
        scalar = isinstance(values, int | Dim)
        items: list[DimLike] = [values] if scalar else list(values)  # type: ignore[list-item, arg-type]
        if all(isinstance(item, int) for item in items):
            array = np.array(items, np.int64)
            return self.constant(array[0] if scalar else array)
        parts: list[str] = []
        run: list[int] = []
        for item in items:
            if isinstance(item, int):
                run.append(item)
                continue
            if run:
                parts.append(self.constant(np.array(run, np.int64)))
                run = []
            parts.append(self.dim(item))
        if run:
            parts.append(self.constant(np.array(run, np.int64)))
        if scalar:
            axes = self.constant(np.array([0], np.int64))
            return self._cached(("squeeze", parts[0]), "Squeeze", [parts[0], axes], {})
        if len(parts) == 1:
            return parts[0]
        return self._cached(("concat", *parts), "Concat", parts, {"axis": 0})

    def dim(self, dim: DimLike) -> str:
        """Returns the name of an i64[1] tensor that holds one size."""
        if isinstance(dim, int):
            return self.constant(np.array([dim], np.int64))
        total = ""
        for mono, coef in dim.terms:
            factor = self.constant(np.array([coef], np.int64)) if coef != 1 or not mono else ""
            for atom, power in mono:
                name = self._symbol(atom) if isinstance(atom, Symbol) else self._op(atom)
                for _ in range(power):
                    factor = self._binary("Mul", factor, name) if factor else name
            total = self._binary("Add", total, factor) if total else factor
        return total

    def _symbol(self, symbol: Symbol) -> str:
        found = self.sources.get(symbol.name)
        if found is None:
            raise UnsupportedError(
                f"size `{symbol.name}` cannot be read from any value in the emitted graph"
            )
        name, axis, _ = found
        shape = self._cached(("shape", name), "Shape", [name], {})
        idx = self.constant(np.array([axis], np.int64))
        return self._cached(("gather", shape, axis), "Gather", [shape, idx], {"axis": 0})

    def _op(self, atom: DimOp) -> str:
        a, b = self.dim(atom.args[0]), self.dim(atom.args[1])
        match atom.kind:
            case "exactdiv":
                return self._binary("Div", a, b)
            case "floordiv":
                # ONNX Div truncates; floor(a / b) == (a - mod(a, b)) / b with Mod's divisor sign
                rest = self._binary("Mod", a, b)
                return self._binary("Div", self._binary("Sub", a, rest), b)
            case "mod":
                return self._binary("Mod", a, b)
            case _:
                result = a
                op_type = "Min" if atom.kind == "min" else "Max"
                for arg in atom.args[1:]:
                    result = self._binary(op_type, result, self.dim(arg))
                return result

    def _binary(self, op_type: str, a: str, b: str) -> str:
        return self._cached((op_type, a, b), op_type, [a, b], {})

    def _cached(self, key: Any, op_type: str, inputs: list[str], attrs: dict[str, Any]) -> str:
        found = self.shared.get(key)
        if found is None:
            found = self.fresh("size")
            self.emit(op_type, inputs, [found], "", attrs)
            self.shared[key] = found
        return found

    def body(self, graph: Graph, captures: Sequence[Value], context: EmitContext) -> onnx.GraphProto:
        """Emits a body graph; its last inputs refer to the outer names of `captures`."""
        from regraft.backends.onnx.save import emit_graph  # noqa: PLC0415

        inner = GraphEmitter(self.table, self.opset, self.profile, parent=self, taken=self.taken)
        inner.sources = dict(self.sources)
        num_formals = len(graph.inputs) - len(captures)
        for value, outer in zip(graph.inputs[num_formals:], captures, strict=True):
            inner.names[value] = self.names[outer]
        proto = emit_graph(graph, inner, f"body_{context.name(context.node.output)}", num_formals)
        self.domains |= inner.domains
        return proto


def make_attribute(name: str, value: Any) -> onnx.AttributeProto:
    """Returns an AttributeProto for a Python value, array, DType or GraphProto."""
    from regraft.backends.onnx.tensors import ONNX_DTYPES  # noqa: PLC0415
    from regraft.ir.types import DType  # noqa: PLC0415

    if isinstance(value, Blob):
        return onnx.AttributeProto.FromString(value.data)
    if isinstance(value, onnx.AttributeProto):
        return value
    if isinstance(value, DType):
        value = ONNX_DTYPES[value]
    elif isinstance(value, np.ndarray):
        value = array_to_tensor(value, "")
    elif isinstance(value, bool):
        value = int(value)
    if isinstance(value, tuple) and not value:
        return helper.make_attribute(name, [], attr_type=onnx.AttributeProto.INTS)
    return helper.make_attribute(name, value)
