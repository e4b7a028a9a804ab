"""PyTorch sources: modules with example arguments, exported programs, factories in files."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.ir.errors import InputError, UnsupportedError, UsageError
from regraft.ir.module import Module

if TYPE_CHECKING:
    from regraft.frontends.torch.call import Import
    from regraft.frontends.torch.capture import Capture

PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt"})
"""Suffixes of files that hold pickles: loading one runs what its author wrote."""


@dataclass(frozen=True, slots=True)
class Example:
    """A PyTorch module with the arguments that it is captured with.

    Args:
        module: `nn.Module` or `ExportedProgram`.
        args: Example positional arguments.
        kwargs: Example keyword arguments.
        dynamic_shapes: Dynamic axes, as `torch.export.export` takes them.
    """

    module: Any
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None


def capture(
    module: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    importers: Sequence[Import] = (),
    opaque: Sequence[str] = (),
) -> Module:
    """Captures a PyTorch module in evaluation mode by `torch.export`.

    Args:
        module: An `nn.Module`, also an `fx.GraphModule`, an `ExportedProgram`, or the path of a
            `.pt2` file.
        args: Example positional arguments; dynamic axes have sizes of at least 2.
        kwargs: Example keyword arguments.
        dynamic_shapes: What `torch.export.export` takes: by argument, axis -> `Dim`; a name may
            stand for a `Dim`, and arguments that are left out are static.
        importers: Importers of overloads that regraft has none for.
        opaque: Namespaces of custom operators that are kept as they are, as `opaque` nodes: only
            the PyTorch target takes them.

    Raises:
        InputError: When the module cannot be exported as it is: names the user's line.
        UnsupportedError: When calls have no IR form (names all of them), or without PyTorch.
        UsageError: When the arguments do not fit the module.
    """
    check_torch()
    if isinstance(module, str | Path):
        return open_program(Path(module), importers, opaque).module
    example = Example(module, args, kwargs or {}, dynamic_shapes)
    return open_example(example, importers, opaque).module


def is_torch_object(source: Any) -> bool:
    """Returns whether a source is a PyTorch module or exported program; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module | torch.export.ExportedProgram)


def open_example(
    example: Example, importers: Sequence[Import] = (), opaque: Sequence[str] = ()
) -> Capture:
    """Captures a module with its example arguments."""
    from regraft.frontends.torch.capture import capture as capture_torch  # takes a second

    return capture_torch(
        example.module, example.args, example.kwargs,
        dynamic_shapes=example.dynamic_shapes, importers=importers, opaque=opaque,
    )  # fmt: skip


def open_program(
    path: Path, importers: Sequence[Import] = (), opaque: Sequence[str] = ()
) -> Capture:
    """Captures the exported program of a `.pt2` file.

    Raises:
        InputError: When the file does not exist or holds no exported program.
    """
    if not path.exists():
        raise InputError(f"`{path}` does not exist", hint="check the path")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"`{path}` is not an exported program", hint="write it with `torch.export.save`"
        )
    check_torch()
    from regraft.frontends.torch.capture import load_program  # takes a second

    return load_program(path, importers, opaque)


def open_factory(place: str) -> Any:
    """Returns what `module.py:factory` gives; this runs the file's code.

    A module comes with its arguments: the factory returns `(module, args)`, and `kwargs` and
    `dynamic_shapes` after them where there are any.

    Raises:
        UsageError: When the file or function does not exist, fails, or gives something else.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"`{path}` does not exist", hint="give `FILE.py:FUNCTION`")
    spec = importlib.util.spec_from_file_location(f"regraft_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"`{path}` cannot be imported")
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code  # dataclasses look their module up there
    try:
        spec.loader.exec_module(code)
        factory = getattr(code, name, None)
        made = factory() if callable(factory) else None
    except Exception as error:
        raise UsageError(f"`{place}` fails: {type(error).__name__}: {error}") from error
    if made is None:
        raise UsageError(
            f"`{path}` has no function `{name}` that returns a model", hint="return (module, args)"
        )
    return _source_of(made, place)


def _source_of(made: Any, place: str) -> Any:
    """Returns what a factory gave as a source.

    Raises:
        UsageError: When it is none.
    """
    if isinstance(made, tuple) and made and is_torch_object(made[0]):
        args: Any = made[1] if len(made) > 1 else ()
        kwargs: Any = made[2] if len(made) > 2 else {}
        if len(made) > 4 or not isinstance(args, tuple | list) or not isinstance(kwargs, Mapping):
            given = ", ".join(type(item).__name__ for item in made)
            raise UsageError(
                f"`{place}` returns ({given}), not (module, args, kwargs, dynamic_shapes)",
                hint="args is a tuple, kwargs a dict; the last ones may be left out",
            )
        return Example(*made)
    if is_torch_object(made):
        return Example(made)
    onnx = sys.modules.get("onnx")
    is_proto = onnx is not None and isinstance(made, onnx.ModelProto)
    if is_proto or isinstance(made, Module | str | Path):
        return made
    raise UsageError(
        f"`{place}` returns a value of type `{type(made).__name__}`, which is no model",
        hint="return (module, args), a ModelProto, a path, or a regraft module",
    )


def check_torch() -> None:
    """Checks that PyTorch is installed.

    Raises:
        UnsupportedError: When it is not.
    """
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        raise UnsupportedError("PyTorch is not installed", hint="`pip install 'regraft[torch]'`")


def refuse_pickle(path: Path) -> None:
    """Refuses a pickled checkpoint.

    Raises:
        InputError: Always, saying how to give the model instead.
    """
    raise InputError(
        f"`{path}` is a pickled checkpoint: loading it can run any code, and it holds no graph",
        hint="load it in your own code and give the module (`regraft.capture(module, args)` or "
        "`module.py:factory`), or export it: `torch.export.save(torch.export.export(…), 'm.pt2')`",
    )
