"""Captures PyTorch modules and exported programs as modules of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regraft.frontends.torch.call import ImportTable
from regraft.frontends.torch.dynamic import read_dynamic_shapes
from regraft.frontends.torch.export import export_module
from regraft.frontends.torch.ops import FAMILIES
from regraft.frontends.torch.program import import_program, user_values
from regraft.ir.errors import UsageError
from regraft.ir.module import Module


def capture(
    source: torch.nn.Module | torch.export.ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Module:
    """Returns the IR of a PyTorch module in evaluation mode.

    Args:
        source: A module, also an `fx.GraphModule`, or an exported program.
        args: Example positional arguments; dynamic axes have sizes of at least 2.
        kwargs: Example keyword arguments.
        dynamic_shapes: What `torch.export.export` takes: by argument, axis -> `Dim`; a name may
            stand for a `Dim`, and arguments that are left out are static.

    Raises:
        InputError: When the module cannot be exported as it is.
        UnsupportedError: When calls have no IR form; names all of them.
    """
    if isinstance(source, torch.export.ExportedProgram):
        if args or kwargs or dynamic_shapes is not None:
            raise UsageError(
                "an exported program takes no example arguments",
                hint="they were fixed when it was exported",
            )
        return import_program(source, ImportTable(*FAMILIES), "model", {})
    named = kwargs or {}
    dynamic = read_dynamic_shapes(source, args, named, dynamic_shapes)
    program = export_module(source, args, named, dynamic.shapes)
    names = dynamic.names(user_values(program))
    return import_program(program, ImportTable(*FAMILIES), type(source).__name__, names)
