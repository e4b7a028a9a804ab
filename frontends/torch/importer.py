"""Builds IR from the graph of an export: arguments, calls, aliases, and what has no importer."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.call import CallImport, UnsupportedCallError
from regraft.frontends.torch.decompose import traced_inputs
from regraft.frontends.torch.known_calls import CASTS, DROPPED, NO_WRITES, SCALAR_READS
from regraft.frontends.torch.nodes import placeholders, plain, storage_of, written_arguments
from regraft.frontends.torch.opaque import import_opaque, is_kept
from regraft.frontends.torch.schemas import Schema, functional_name
from regraft.frontends.torch.session import Session, Unsupported
from regraft.frontends.torch.stopping import is_written
from regraft.frontends.torch.tensors import DTYPES, array_from_tensor, dtype_from_torch
from regraft.frontends.torch.views import INVERSES
from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant, opaque
from regraft.ir.graph import Graph, Loc, Value
from regraft.ir.ops.cast import cast
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight


class GraphImporter:
    """Imports one `fx` graph into an IR graph.

    Args:
        session: What all graphs share.
        graph: The IR graph that nodes are appended to.
        owner: The `GraphModule` that holds the tensors and graphs that `get_attr` names.
        loc: Origins of every node, where they are fixed from outside.
    """

    def __init__(
        self, session: Session, graph: Graph, owner: torch.nn.Module, loc: Loc | None = None
    ) -> None:
        self.session = session
        self.graph = graph
        self.owner = owner
        self.loc = loc
        self.b = Builder(graph)
        self.env: dict[torch.fx.Node, Any] = {}
        self.writes = False
        self.autocast: DType | None = None

    # -- the walk ---------------------------------------------------------------------------

    def run(self, graph: torch.fx.Graph) -> Any:
        """Imports every node; placeholders are in `env` already.

        Returns:
            The argument of the `output` node: handles, sizes, numbers and None in its structure.
        """
        self.writes = self.writes or any(map(written_arguments, graph.nodes))
        for node in graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                return self.convert(node.args[0])
            elif node.op == "get_attr":
                self.env[node] = self._attribute(node)
        raise AssertionError("a graph without output")

    def _attribute(self, node: torch.fx.Node) -> Any:
        found: Any = self.owner
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            return self.constant(str(node.target), found)
        return found

    def constant(self, name: str, tensor: torch.Tensor) -> Handle:
        """Returns a handle of a tensor that the graph holds."""
        array = array_from_tensor(tensor)
        if array.nbytes <= 1024:
            return Handle(self.b.constant(array))
        return Handle(self.b.weight(name, ArrayWeight(array)))

    def _call(self, node: torch.fx.Node) -> None:
        target = node.target
        if isinstance(target, OpOverload):
            self._overload(node, target)
        elif target is operator.getitem:
            self.env[node] = self.convert(node.args[0])[node.args[1]]
        elif isinstance(target, HigherOrderOperator):
            self._higher_order(node, target.name())
        elif isinstance(target, type) and issubclass(target, tuple):
            self.env[node] = self.convert(node.args)  # the named results of a decomposition
        elif not isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            self._function(node)
        # arithmetic of sizes is read from the export's own expressions where it is used

    def _function(self, node: torch.fx.Node) -> None:
        """Imports a Python function: of constants, or one that has no IR form."""
        val = node.meta.get("val")
        if isinstance(val, bool | int | float):
            self.env[node] = val
            return
        self.b.loc = self.session.locations.of(node.meta) if self.loc is None else self.loc
        self._note_unsupported(
            node, getattr(node.target, "__name__", str(node.target)), "a function"
        )

    # -- arguments --------------------------------------------------------------------------

    def convert(self, arg: Any) -> Any:
        """Returns an argument as handles, dims, numbers, names and tuples of them."""
        if isinstance(arg, torch.fx.Node):
            found = self.env.get(arg)
            if found is None and arg not in self.env:
                from regraft.frontends.torch.scalars import import_scalar

                found = self.env[arg] = import_scalar(self, arg)
            return found
        if isinstance(arg, list | tuple):
            return tuple([self.convert(item) for item in arg])
        if isinstance(arg, torch.dtype):
            return DTYPES.get(arg, arg)
        if isinstance(arg, dict):
            return {key: self.convert(item) for key, item in arg.items()}
        if isinstance(arg, slice):
            return slice(self.convert(arg.start), self.convert(arg.stop), self.convert(arg.step))
        return arg

    # -- overloads --------------------------------------------------------------------------

    def _overload(self, node: torch.fx.Node, target: OpOverload) -> None:
        val = node.meta.get("val")
        schema = self.session.schemas.of(target)
        if schema.name == "aten.detach.default" and is_written(node):
            schema = self.session.schemas.of(torch.ops.aten.alias.default)
        name = schema.name
        if name in DROPPED:
            return
        if isinstance(val, torch.SymInt | int) or name in SCALAR_READS:
            from regraft.frontends.torch.scalars import import_item

            import_item(self, node, name)
            return
        self.b.loc = self.session.locations.of(node.meta) if self.loc is None else self.loc
        bound = schema.bind(node.args, node.kwargs)
        converted = {key: self.convert(item) for key, item in bound.items()}
        try:
            if schema.written:
                self.env[node] = self._write(target, schema, converted)
                return
            for symbol in node.meta.get("unbacked_bindings") or ():
                self.session.sizes.expect(symbol)
            results = self._results(val)
            if self.autocast is not None and name not in CASTS:
                converted = {k: self._autocast(v, results) for k, v in converted.items()}
            values = self._compute(name, converted, results)
            self._bind_sizes(val, values)
        except UnsupportedCallError as error:
            kept = self._opaque(node, schema, converted)
            if kept is None and self.import_decomposed(node):
                return
            if kept is None and is_kept(schema, converted, self._results(val), self.session.sizes):
                kept = import_opaque(self.b, schema, converted, self._results(val))
            if kept is None:
                self._note_unsupported(node, name, error.reason)
                return
            results, values = self._results(val), list(kept)
        self._name(node, values)
        handles = self._handles(node, schema, converted, results, values)
        self.env[node] = handles if schema.is_list or schema.num_results > 1 else handles[0]

    def _autocast(self, arg: Any, results: Sequence[TensorType]) -> Any:
        """Returns a float operand in the type in which autocast computes: that of the result."""
        wanted = results[0].dtype if results else None
        if isinstance(arg, tuple):
            return tuple([self._autocast(item, results) for item in arg])
        if not isinstance(arg, Handle) or wanted is None or not wanted.is_float:
            return arg
        dtype = arg.type.dtype
        if dtype is wanted or dtype is None or not dtype.is_float:
            return arg
        return Handle(self.b.op(cast, arg.read(), to=wanted))

    def _results(self, val: Any) -> tuple[TensorType, ...]:
        """Returns the types that the export gives to the results of a call."""
        if isinstance(val, torch.Tensor):
            return (self.type_of(val),)
        if isinstance(val, list | tuple):
            return tuple(
                self.type_of(item) if isinstance(item, torch.Tensor) else TensorType()
                for item in val
            )
        return ()

    def type_of(self, val: torch.Tensor) -> TensorType:
        """Returns the type of a fake tensor."""
        return TensorType(dtype_from_torch(val.dtype), self.session.sizes.shape(val.shape))

    def _compute(
        self, name: str, args: Mapping[str, Any], results: Sequence[TensorType]
    ) -> list[Value | None]:
        """Returns the results of a functional overload.

        Raises:
            UnsupportedCallError: When it has no importer, or the importer has no form for it.
        """
        importer = self.session.table.find(name)
        if importer is None:
            raise UnsupportedCallError("no importer")
        made = importer(CallImport(name, {k: plain(v) for k, v in args.items()}, results, self.b))
        return [made] if isinstance(made, Value) else list(made)

    def _name(self, node: torch.fx.Node, values: Sequence[Value | None]) -> None:
        for i, value in enumerate(values):
            if value is not None and value.name is None and not is_constant(value):
                value.name = node.name if len(values) == 1 else f"{node.name}.{i}"

    def _bind_sizes(self, val: Any, values: Sequence[Value | None]) -> None:
        """States which defined sizes of the IR the new symbols of a result are.

        Raises:
            UnsupportedCallError: When the importer took the size from the export, which says only
                that it will be known: nothing in the IR defines it.
        """
        sizes = self.session.sizes
        items = val if isinstance(val, list | tuple) else (val,)
        for item, value in zip(items, values, strict=False):
            if isinstance(item, torch.Tensor) and value is not None and value.shape is not None:
                for dim, mine in zip(item.shape, value.shape, strict=False):
                    if type(dim) is not int:
                        expr = dim.node.expr
                        if expr.is_Symbol and not sizes.knows(expr):
                            if sizes.is_expected(mine):
                                raise UnsupportedCallError("only its content says how large it is")
                            sizes.define(expr, mine)

    def _higher_order(self, node: torch.fx.Node, name: str) -> None:
        """Imports a region, branch or loop.

        What a region computes is noted as unsupported by the region's own calls.
        """
        from regraft.frontends.torch.control import HIGHER_ORDER  # bodies are graphs of this class

        self.b.loc = self.session.locations.of(node.meta) if self.loc is None else self.loc
        importer = HIGHER_ORDER.get(name)
        if importer is None:
            self._note_unsupported(node, f"higher_order.{name}", "no IR form")
            return
        try:
            self.env[node] = importer(self, node)
        except UnsupportedCallError as error:
            self._note_unsupported(node, f"higher_order.{name}", error.reason)

    # -- aliases ----------------------------------------------------------------------------

    def _handles(
        self,
        node: torch.fx.Node,
        schema: Schema,
        args: Mapping[str, Any],
        results: Sequence[TensorType],
        values: Sequence[Value | None],
    ) -> tuple[Handle | None, ...]:
        """Returns the handles of the results: views of the first tensor argument, or new memory."""
        parent = None
        if self.writes:
            parent = self._viewed(node, schema, args)
        if parent is None:
            return tuple([None if value is None else Handle(value) for value in values])
        return tuple(
            self._view(schema, parent, args, results, values, idx) for idx in range(len(values))
        )

    def _viewed(
        self, node: torch.fx.Node, schema: Schema, args: Mapping[str, Any]
    ) -> Handle | None:
        """Returns the tensor that the results of a call look at, or None for new memory."""
        first = node.args[0] if node.args else None
        if not isinstance(first, torch.fx.Node):
            return None
        source, val = first.meta.get("val"), node.meta.get("val")
        if isinstance(val, list | tuple):
            val = val[0] if val else None
        if not isinstance(source, torch.Tensor) or not isinstance(val, torch.Tensor):
            return None
        if storage_of(source) != storage_of(val):
            return None
        handle = args[schema.arg_names[0]]
        return handle if isinstance(handle, Handle) else None

    def _view(
        self,
        schema: Schema,
        parent: Handle,
        args: Mapping[str, Any],
        results: Sequence[TensorType],
        values: Sequence[Value | None],
        idx: int,
    ) -> Handle | None:
        value = values[idx]
        if value is None:
            return None
        name, first = schema.name, schema.arg_names[0]
        others = {key: plain(item) for key, item in args.items()}
        inverse = INVERSES.get(name)

        def apply(base: Value) -> Value:
            made = self._compute(name, {**others, first: base}, results)[idx]
            if made is None:
                raise AssertionError("a view without a result")
            return made

        def undo(before: Value, view: Value) -> Value:
            if inverse is None:
                raise UnsupportedCallError(f"a write to a view made by `{name}`")
            return inverse(self.b, before, view, others, idx)

        return Handle(value, parent, apply, undo)

    def _write(self, target: OpOverload, schema: Schema, args: dict[str, Any]) -> Any:
        """Imports an in-place call as the functional one, and rebinds what it writes to.

        Raises:
            UnsupportedCallError: When the call writes to several tensors or to none it returns.
        """
        from regraft.frontends.torch.writes import WRITES

        if len(schema.written) != 1 or schema.written[0] not in (schema.arg_names[0], "out"):
            raise UnsupportedCallError(f"it writes to {', '.join(schema.written)}")
        handle = args[schema.written[0]]
        if not isinstance(handle, Handle):
            raise UnsupportedCallError("it writes to something that is no tensor")
        if schema.name in NO_WRITES:
            return handle
        type_ = handle.type
        direct = WRITES.get(schema.name)
        if direct is not None:
            value = direct(self.b, handle.read(), {k: plain(v) for k, v in args.items()})
        else:
            name = functional_name(target)
            if name is None:
                raise UnsupportedCallError("no functional counterpart")
            args.pop("out", None)
            made = self._compute(name, args, (type_,))[0]
            if made is None:
                raise AssertionError("an in-place call without a result")
            value = made
        handle.write(value)
        return handle

    # -- what has no importer ---------------------------------------------------------------

    def _opaque(
        self, node: torch.fx.Node, schema: Schema, args: Mapping[str, Any]
    ) -> Sequence[Value] | None:
        """Returns the results of a call that the user asked to carry through, else None."""
        if schema.name.partition(".")[0] not in self.session.opaque:
            return None
        return import_opaque(self.b, schema, args, self._results(node.meta.get("val")))

    def import_decomposed(self, node: torch.fx.Node) -> bool:
        """Imports PyTorch's decomposition of a call; returns whether there is one."""
        inner = self.session.decompose(node)
        if inner is None:
            return False
        nested = GraphImporter(self.session, self.graph, inner, self.b.loc)
        for placeholder, arg in zip(placeholders(inner.graph), traced_inputs(node), strict=True):
            nested.env[placeholder] = self.convert(arg)
        self.env[node] = nested.run(inner.graph)
        return True

    def _note_unsupported(self, node: torch.fx.Node, name: str, reason: str) -> None:
        """Notes a call without an IR form; the walk goes on, to report all of them at once."""
        self.session.unsupported.append(Unsupported(name, reason, self.b.loc))
        results = self._results(node.meta.get("val"))
        made = self.b.node(
            opaque, num_outputs=max(1, len(results)), dialect=f"torch:{name.partition('.')[0]}",
            op_type=name,
        )  # fmt: skip
        for value, type_ in zip(made.outputs, results, strict=False):
            value.type = type_
        handles = tuple(Handle(value) for value in made.outputs)
        is_many = isinstance(node.meta.get("val"), list | tuple)
        self.env[node] = handles if is_many else handles[0]
