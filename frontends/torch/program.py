"""Imports exported programs: weights, inputs, outputs, states, and what has no IR form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
from regraft.frontends.torch.importer import GraphImporter, Session, Unsupported, placeholders
from regraft.frontends.torch.interface import input_names, output_names
from regraft.frontends.torch.scalars import number
from regraft.frontends.torch.sizes import Sizes
from regraft.frontends.torch.weights import WeightTable
from regraft.ir.collector import collector_paused
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module


def import_program(
    program: torch.export.ExportedProgram,
    table: ImportTable,
    name: str,
    dim_names: Mapping[Any, str],
) -> Module:
    """Returns the module of an exported program.

    Args:
        program: The program; decomposed or not.
        table: Importers.
        name: Name of the model.
        dim_names: The user's names of symbols.

    Raises:
        UnsupportedError: When calls have no IR form; names all of them.
    """
    module = Module(Graph(), name)
    sizes = Sizes(module.graph.scope, program.range_constraints, dim_names)
    session = Session(table, sizes, module.warnings, Decomposer().trace)
    importer = GraphImporter(session, module.graph, program.graph_module)
    with collector_paused():
        taken = _import_inputs(program, importer)
        results = importer.run(program.graph)
        _add_outputs(program, importer, results, taken)
    if session.unsupported:
        raise unsupported_error(session.unsupported)
    module.meta["torch.version"] = torch.__version__
    return module


def _import_inputs(program: torch.export.ExportedProgram, importer: GraphImporter) -> list[str]:
    """Binds every placeholder; returns the names of the graph inputs."""
    weights = WeightTable(program, importer.b)
    names = input_names(program)
    taken: list[str] = []
    user_idx = 0
    specs = program.graph_signature.input_specs
    for node, spec in zip(placeholders(program.graph), specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            importer.env[node] = _user_input(importer, node, spec, names[user_idx], taken)
            user_idx += 1
        else:
            importer.env[node] = weights.handle(spec)
    return taken


def _user_input(
    importer: GraphImporter, node: torch.fx.Node, spec: InputSpec, name: str, taken: list[str]
) -> Any:
    match spec.arg:
        case ConstantArgument():
            return spec.arg.value
        case TensorArgument():
            val = node.meta["val"]
            sizes = importer.session.sizes
            for axis, dim in enumerate(val.shape):
                if isinstance(dim, torch.SymInt) and dim.node.expr.is_Symbol:
                    sizes.declare(dim.node.expr, f"{name.replace('.', '_')}_{axis}")
            taken.append(name)
            return Handle(importer.graph.add_input(name, importer.type_of(val)))
        case _:
            raise UnsupportedError(
                f"input `{name}` is a {type(spec.arg).__name__.removesuffix('Argument')}",
                hint="give it as a tensor, or leave it static",
            )


def _add_outputs(
    program: torch.export.ExportedProgram, importer: GraphImporter, results: Any, taken: list[str]
) -> None:
    names = iter(output_names(program, taken))
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        name = next(names)
        if isinstance(result, Handle):
            importer.graph.add_output(name, result.read())
        elif result is not None and not isinstance(spec.arg, ConstantArgument):
            importer.graph.add_output(name, number(importer.b, result))


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
        hint="give importers in `Plugin(torch_imports=…)`, or write the lines with other operators",
    )


__all__ = ["SymIntArgument", "Value", "import_program", "unsupported_error"]
