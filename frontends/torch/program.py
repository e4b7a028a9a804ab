"""Imports exported programs: weights, inputs, outputs, states, and what has no IR form."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.call import ImportTable
from regraft.frontends.torch.decompose import Decomposer
from regraft.frontends.torch.equal_sizes import equal_sizes
from regraft.frontends.torch.importer import GraphImporter
from regraft.frontends.torch.interface import (
    call_nests,
    constant,
    input_names,
    output_names,
    output_nest,
)
from regraft.frontends.torch.nodes import placeholders, storage_of
from regraft.frontends.torch.scalars import counted, number
from regraft.frontends.torch.session import Session, Unsupported
from regraft.frontends.torch.sizes import Sizes
from regraft.frontends.torch.states import (
    add_buffer_states,
    add_input_states,
    link_caches,
    written_storages,
)
from regraft.frontends.torch.weights import WeightTable, role_of
from regraft.ir.call_form import CALL, OUTPUTS, Nest, Special
from regraft.ir.collector import collector_paused
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import Role


@dataclass(frozen=True, slots=True)
class Imported:
    """A module and how its interface lies in the user's arguments and results.

    Args:
        module: The module.
        inputs: Name of the graph input by leaf of the arguments.
        outputs: Name of the graph output by leaf of the result.
    """

    module: Module
    inputs: Mapping[int, str]
    outputs: Mapping[int, str]


def import_program(
    program: torch.export.ExportedProgram,
    table: ImportTable,
    name: str,
    dim_names: Mapping[Any, str],
    opaque: Sequence[str] = (),
    positional: Sequence[str] | None = None,
) -> Imported:
    """Imports an exported program.

    Args:
        program: The program; decomposed or not.
        table: Importers.
        name: Name of the model.
        dim_names: The user's names of symbols.
        opaque: Namespaces of operators that are carried through as they are.
        positional: Parameters of `forward` that may be given by position, where that is known.

    Raises:
        UnsupportedError: When calls have no IR form; names all of them.
    """
    if any(_maps_rows(node) for node in program.graph.nodes):
        with warnings.catch_warnings():
            # PyTorch warns of its own copy of a tree of arguments
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")
            program = program.run_decompositions({})  # resolves `vmap`, decomposes nothing else
    module = Module(Graph(), name)
    sizes = Sizes(module.graph.scope, program.range_constraints, dim_names)
    session = Session(table, sizes, module.warnings, Decomposer(sizes).trace, frozenset(opaque))
    importer = GraphImporter(session, module.graph, program.graph_module)
    with collector_paused():
        interface = _Interface(program, importer)
        interface.add_inputs()
        interface.add_outputs(importer.run(program.graph), module)
    if session.unsupported:
        raise unsupported_error(session.unsupported)
    module.meta["torch.version"] = torch.__version__
    call = program.module_call_graph[0].signature
    if call is not None and call.out_spec.num_leaves:
        # what a generated `forward` takes and returns
        module.meta[CALL] = tuple(call_nests(program, interface.given_leaves, positional))
        module.meta[OUTPUTS] = output_nest(call.out_spec, interface.returned_leaves)
    return Imported(module, interface.input_leaves, interface.output_leaves)


def _leaf(arg: object, name: str | None) -> Nest:
    """Returns the nest of a leaf of the arguments or the result."""
    if isinstance(arg, ConstantArgument):
        return constant(arg.value)
    if isinstance(arg, SymIntArgument) and name is not None:
        return {"": Special.SIZE.value, "name": name}
    return name


def _maps_rows(node: torch.fx.Node) -> bool:
    """Returns whether a node is a step of `torch.vmap`, which works on tensors of another rank."""
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def user_values(program: torch.export.ExportedProgram) -> list[Any]:
    """Returns the fake tensors (None for other leaves) of the user's arguments, in order."""
    specs = program.graph_signature.input_specs
    return [
        node.meta.get("val")
        for node, spec in zip(placeholders(program.graph), specs, strict=True)
        if spec.kind is InputKind.USER_INPUT
    ]


class _Interface:
    """Inputs and outputs of the program under import.

    Attributes:
        inputs: Names of the graph inputs that the user gives.
        given_leaves: The user's arguments by leaf: names of inputs, and constants.
        returned_leaves: The user's results by leaf: names of outputs, and constants.
        buffers: Graph input and handle of every buffer that is written to, by name.
        given: Handle of every user input by name.
    """

    def __init__(self, program: torch.export.ExportedProgram, importer: GraphImporter) -> None:
        self.program = program
        self.importer = importer
        self.weights = WeightTable(program, importer.b)
        self.inputs: list[str] = []
        self.input_leaves: dict[int, str] = {}
        self.output_leaves: dict[int, str] = {}
        self.given_leaves: list[Nest] = []
        self.returned_leaves: list[Nest] = []
        self.buffers: dict[str, tuple[Value, Handle]] = {}
        self.given: dict[str, tuple[Value, Handle]] = {}
        self.mutated = written_storages(program)
        self.mutated_names = _mutated_names(program)

    def add_inputs(self) -> None:
        """Binds every placeholder."""
        names = input_names(self.program)
        self._declare_sizes(names)
        leaf = 0
        specs = self.program.graph_signature.input_specs
        for node, spec in zip(placeholders(self.program.graph), specs, strict=True):
            env = self.importer.env
            if spec.kind is InputKind.USER_INPUT:
                env[node] = self._user_input(node, spec, names[leaf])
                self.given_leaves.append(_leaf(spec.arg, names[leaf]))
                if not isinstance(spec.arg, ConstantArgument):
                    self.input_leaves[leaf] = names[leaf]
                leaf += 1
            elif spec.kind is InputKind.BUFFER and self._is_written(node, spec):
                env[node] = self._buffer(node, str(spec.target), role_of(spec) or Role.BUFFER)
            else:
                env[node] = self.weights.handle(spec)

    def _declare_sizes(self, names: Sequence[str]) -> None:
        """Makes the symbols of the user's arguments; some are sums of others."""
        sizes, values = self.importer.session.sizes, user_values(self.program)
        sums = equal_sizes(values)
        # axes of one name are equal, whatever the export knows about them
        named = {sizes.names[each]: total for each, total in sums.items() if each in sizes.names}
        terms = {term for total in sums.values() for term in total.free_symbols}
        for name, value in zip(names, values, strict=True):
            for axis, dim in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if not isinstance(dim, torch.SymInt) or not dim.node.expr.is_Symbol:
                    continue
                symbol = dim.node.expr
                if sizes.names.get(symbol) in named and symbol not in terms:
                    sums.setdefault(symbol, named[sizes.names[symbol]])
                if symbol not in sums:
                    sizes.declare(symbol, f"{name.replace('.', '_')}_{axis}")
        for symbol, total in sums.items():
            sizes.define(symbol, sizes.expression(total))

    def _is_written(self, node: torch.fx.Node, spec: InputSpec) -> bool:
        return spec.target in self.mutated_names or storage_of(node.meta["val"]) in self.mutated

    def _buffer(self, node: torch.fx.Node, name: str, role: Role) -> Handle:
        """A buffer that is written to is a graph input; the store keeps its first content."""
        self.weights.store(name, role)
        value = self.importer.graph.add_input(name, self.importer.type_of(node.meta["val"]))
        handle = Handle(value)
        self.buffers[name] = (value, handle)
        return handle

    def _user_input(self, node: torch.fx.Node, spec: InputSpec, name: str) -> Any:
        if isinstance(spec.arg, ConstantArgument):
            return spec.arg.value
        val = node.meta["val"]
        sizes = self.importer.session.sizes
        graph = self.importer.graph
        if isinstance(spec.arg, TensorArgument):
            value = graph.add_input(name, self.importer.type_of(val))
            handle = Handle(value)
            self.given[name] = (value, handle)
            self.inputs.append(name)
            return handle
        if isinstance(spec.arg, SymIntArgument) and isinstance(val, torch.SymInt):
            value = graph.add_input(name, TensorType(DType.I64, ()))
            self.inputs.append(name)
            sizes.define(val.node.expr, counted(self.importer.b, value))
            return sizes.size(val)
        raise UnsupportedError(
            f"input `{name}` is a {type(spec.arg).__name__.removesuffix('Argument')}",
            hint="give it as a tensor, or leave it static",
        )

    def add_outputs(self, results: Any, module: Module) -> None:
        """Adds the user's outputs, then the states."""
        graph = self.importer.graph
        names = output_names(self.program, self.inputs)
        leaf = 0
        for spec, result in zip(self.program.graph_signature.output_specs, results, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                if isinstance(result, Handle):
                    graph.add_output(names[leaf], result.read())
                    self.output_leaves[leaf] = names[leaf]
                elif result is not None and not isinstance(spec.arg, ConstantArgument):
                    graph.add_output(names[leaf], number(self.importer.b, result))
                    self.output_leaves[leaf] = names[leaf]
                self.returned_leaves.append(_leaf(spec.arg, self.output_leaves.get(leaf)))
                leaf += 1
            elif spec.kind is OutputKind.BUFFER_MUTATION:
                value, handle = self.buffers[str(spec.target)]
                handle.write(result.read())
            elif spec.kind is OutputKind.USER_INPUT_MUTATION:
                self.given[self._input_name(str(spec.target))][1].write(result.read())
        module.states += link_caches(self.inputs, graph.output_names)
        add_input_states(module, self.given)
        add_buffer_states(module, self.buffers)
        user = set(self.inputs)
        graph.inputs.sort(key=lambda value: value.name not in user)  # states come last
        for i, value in enumerate(graph.inputs):
            value.index = i

    def _input_name(self, placeholder: str) -> str:
        for node in placeholders(self.program.graph):
            if node.name == placeholder:
                handle = self.importer.env[node]
                return next(name for name, (_, each) in self.given.items() if each is handle)
        raise AssertionError(f"no placeholder `{placeholder}`")


def _mutated_names(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Returns the buffers that a decomposed program gives back."""
    return frozenset(
        str(spec.target)
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.BUFFER_MUTATION
    )


def unsupported_error(calls: list[Unsupported]) -> UnsupportedError:
    """Returns the error that lists every call without an IR form, with counts and lines."""
    counts = Counter((call.target, call.reason) for call in calls)
    lines = []
    for (target, reason), count in counts.most_common():
        loc = next(c.loc for c in calls if (c.target, c.reason) == (target, reason))
        where = f" at {loc[-1]}" if loc else ""
        lines.append(f"  `{target}` x {count}: {reason}{where}")
    return UnsupportedError(
        f"{len(calls)} calls of {len(counts)} kinds have no IR form:\n" + "\n".join(lines),
        hint="give importers in `Plugin(torch_importers=…)`, keep custom operators as they are "
        "(`capture(…, opaque=[namespace])`), or write the lines otherwise",
    )
