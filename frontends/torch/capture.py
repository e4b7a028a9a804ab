"""Captures PyTorch modules and exported programs as modules of the IR."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from regraft.frontends.torch.caches import register_caches
from regraft.frontends.torch.call import Import, ImportTable
from regraft.frontends.torch.dynamic import read_dynamic_shapes
from regraft.frontends.torch.eager import EagerRunner
from regraft.frontends.torch.export import export_module, named_keywords
from regraft.frontends.torch.memory import restore_memory
from regraft.frontends.torch.ops import FAMILIES
from regraft.frontends.torch.program import Imported, import_program, user_values
from regraft.frontends.torch.tensors import array_from_tensor
from regraft.ir.errors import InputError, UsageError
from regraft.ir.module import Module


@dataclass(frozen=True, slots=True)
class Capture:
    """A captured module and the original that it can be compared with.

    Args:
        imported: The module and its interface.
        original: What was captured, as a function.
        args: Example positional arguments.
        kwargs: Example keyword arguments.
    """

    imported: Imported
    original: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> Module:
        """The module of the IR."""
        return self.imported.module

    def example(self) -> dict[str, Any] | None:
        """Returns the example arguments as arrays by name of the graph input, None without any."""
        leaves = pytree.tree_leaves((tuple(self.args), dict(self.kwargs)))
        if len(leaves) <= max(self.imported.inputs, default=-1):
            return None  # a program that was saved without
        found = {name: leaves[i] for i, name in self.imported.inputs.items()}
        return {
            name: array_from_tensor(x) if isinstance(x, torch.Tensor) else np.asarray(x)
            for name, x in found.items()
        }

    def runner(self, fast: bool) -> EagerRunner:
        """Returns a runner of the original."""
        return EagerRunner(
            self.original, self.args, self.kwargs, self.imported.inputs, self.imported.outputs,
            fast=fast,
        )  # fmt: skip


def capture(
    source: torch.nn.Module | torch.export.ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    importers: Sequence[Import] = (),
    opaque: Sequence[str] = (),
) -> Capture:
    """Captures a PyTorch module in evaluation mode.

    Args:
        source: A module, also an `fx.GraphModule`, or an exported program.
        args: Example positional arguments; dynamic axes have sizes of at least 2.
        kwargs: Example keyword arguments.
        dynamic_shapes: What `torch.export.export` takes: by argument, axis -> `Dim`; a name may
            stand for a `Dim`, arguments that are left out are static, and the axes of one tensor
            stand for those of all tensors of a cache or other tree.
        importers: Importers of overloads that regraft has none for.
        opaque: Namespaces of custom operators that become `opaque` nodes, which only the PyTorch
            target takes: as the calls that they are.

    Raises:
        InputError: When the module cannot be exported as it is.
        UnsupportedError: When calls have no IR form; names all of them.
        UsageError: When the arguments do not fit the source.
    """
    if isinstance(source, torch.export.ExportedProgram):
        if args or kwargs or dynamic_shapes is not None:
            raise UsageError(
                "an exported program takes no example arguments",
                hint="they were fixed when it was exported",
            )
        return _program(source, importers, "model", opaque)
    if isinstance(source, torch.jit.ScriptModule):
        raise UsageError(
            "a TorchScript module has no Python forward to export",
            hint="give the `nn.Module` that it was made from",
        )
    named = kwargs or {}
    register_caches()
    with named_keywords(source, named):
        dynamic = read_dynamic_shapes(source, args, named, dynamic_shapes)
        program = export_module(source, args, named, dynamic.shapes)
    names = dynamic.names(user_values(program))
    imported = import_program(
        program, _table(importers), type(source).__name__, names, opaque, _positional(source)
    )
    return Capture(imported, source, args, named)


def _positional(module: torch.nn.Module) -> tuple[str, ...]:
    """Returns the parameters of `forward` that may be given by position, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = inspect.signature(module.forward).parameters.values()
    return tuple(parameter.name for parameter in given if parameter.kind in kinds)


def load_program(
    path: Path, importers: Sequence[Import] = (), opaque: Sequence[str] = ()
) -> Capture:
    """Captures the exported program of a `.pt2` file.

    Raises:
        InputError: When the file holds no exported program.
        UnsupportedError: When calls have no IR form; names all of them.
    """
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise InputError(
            f"`{path}` cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint=f"export it again with this PyTorch ({torch.__version__})",
        ) from error
    return _program(program, importers, path.stem, opaque)


def _program(
    program: torch.export.ExportedProgram,
    importers: Sequence[Import],
    name: str,
    opaque: Sequence[str] = (),
) -> Capture:
    restore_memory(program)
    imported = import_program(program, _table(importers), name, {}, opaque)
    args, kwargs = program.example_inputs or ((), {})
    return Capture(imported, program.module(), args, kwargs)


def _table(importers: Sequence[Import]) -> ImportTable:
    """Returns regraft's importers and those of plugins.

    Raises:
        UsageError: When two take one overload.
    """
    try:
        return ImportTable(*FAMILIES, tuple(importers))
    except ValueError as error:
        raise UsageError(str(error), hint="plugins add importers, they replace none") from error
