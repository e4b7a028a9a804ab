"""What can be converted: paths and objects to modules and to runners of the original."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import huggingface_sources, torch_sources
from regraft.frontends.huggingface.checkpoint import CONFIG
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.module import Module
from regraft.plugins import Extensions, combine

if TYPE_CHECKING:
    import onnx

    from regraft.frontends.torch.capture import Capture
    from regraft.passes.check.runners import Runner

_CHUNK = 1 << 22
_FACTORY = re.compile(r"\.py:\w+$")


def _no_example() -> None:
    return None


@dataclass(slots=True)
class Source:
    """A loaded source.

    Attributes:
        module: Its module.
        label: Path or description, for messages and reports.
        sha256: Hash of the file, or None for objects.
        num_bytes: Size on disk, external data included, or None.
        runner: Makes a runner of the original, given whether the runtime may optimize; None when
            only the evaluator can run it.
        file: The model file that the runtime reads, or None.
        extensions: Operators and emitters, those of plugins among them.
        example: Makes the inputs that the module was captured with, by name; None without any.
    """

    module: Module
    label: str
    sha256: str | None
    num_bytes: int | None
    runner: Callable[[bool], Runner] | None
    file: Path | None = None
    extensions: Extensions = field(default_factory=lambda: combine(()))
    example: Callable[[], Mapping[str, Any] | None] = _no_example


def open_source(source: Any, extensions: Extensions | None = None) -> Source:
    """Loads a path, ModelProto, PyTorch module or module.

    Args:
        source: What to load; a PyTorch module that takes arguments comes as `Example`.
        extensions: Operators and importers, those of plugins among them; default: regraft's own.

    Raises:
        InputError: When the path does not exist or its content is not understood.
        UnsupportedError: For a kind of source that has no frontend yet.
    """
    extensions = combine(()) if extensions is None else extensions
    if isinstance(source, Module):
        return Source(source, source.name, None, None, None, None, extensions)
    if torch_sources.is_torch_object(source):
        source = torch_sources.Example(source)
    if isinstance(source, torch_sources.Example):
        captured = torch_sources.open_example(source, extensions.torch_importers)
        return _open_torch(captured, captured.module.name, None, extensions)
    if isinstance(source, str):
        named = _open_named(source, extensions)
        if named is not None:
            return named
    if isinstance(source, str | Path):
        return _open_path(Path(source), extensions)
    if type(source).__name__ == "ModelProto":
        return _open_proto(source, extensions)
    raise UnsupportedError(
        f"a source of type `{type(source).__name__}` has no frontend",
        hint="give a path, a ModelProto, a PyTorch module with its arguments, or a regraft module",
    )


def _open_named(source: str, extensions: Extensions) -> Source | None:
    """Loads a source that is named but no path: `hf:org/name`, `module.py:factory`."""
    if source.startswith("hf:"):
        name = source.removeprefix("hf:")
        form = huggingface_sources.FORM.search(name)
        bare = name if form is None else name[: form.start()]
        trusted = extensions.trust_remote_code
        folder = huggingface_sources.hub_folder(bare, with_code=trusted)
        opened = _open_folder(folder, "prefill" if form is None else form[1], extensions)
        opened.label = source
        return opened
    if _FACTORY.search(source) is None:
        return None
    made = open_source(torch_sources.open_factory(source), extensions)
    made.label = source
    return made


def _open_torch(captured: Capture, label: str, path: Path | None, extensions: Extensions) -> Source:
    module = captured.module
    # the original does not return what it writes to buffers and inputs: only the evaluator does
    returned = set(captured.imported.outputs.values())
    runner = captured.runner if returned.issuperset(module.graph.output_names) else None
    return Source(
        module, label, None if path is None else sha256_of(path),
        None if path is None else path.stat().st_size, runner, None, extensions, captured.example,
    )  # fmt: skip


def _open_folder(folder: Path, form: str, extensions: Extensions) -> Source:
    loaded = huggingface_sources.open_folder(
        folder, form, trust_remote_code=extensions.trust_remote_code,
        importers=extensions.torch_importers,
    )  # fmt: skip
    files = loaded.checkpoint.files
    label = str(folder) if form == "prefill" else f"{folder}#{form}"
    made = _open_torch(loaded.capture, label, None, extensions)
    made.sha256 = sha256_of(folder / CONFIG, *files)  # equal weights may be of another model
    made.num_bytes = sum(file.stat().st_size for file in files)
    return made


def _open_path(path: Path, extensions: Extensions) -> Source:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # said below; a folder's form (`folder#decode`) is no part of the path
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(
            f"`{path}` cannot be read: {error.strerror}", hint="check the path"
        ) from error
    if path.is_dir() or huggingface_sources.FORM.search(path.name):
        named = None if _has_onnx(path) else huggingface_sources.folder_of(path)
        if named is not None:
            return _open_folder(*named, extensions)
    if path.is_dir():
        path = _model_in(path)
    if not path.exists():
        raise InputError(f"`{path}` does not exist", hint="check the path")
    if path.suffix == ".py":
        raise InputError(
            f"`{path}` is Python code, and none of its functions is named",
            hint=f"name one that returns (model, args): `{path}:FUNCTION`",
        )
    if path.suffix in torch_sources.PICKLED:
        torch_sources.refuse_pickle(path)
    if path.suffix == ".pt2":
        captured = torch_sources.open_program(path, extensions.torch_importers)
        return _open_torch(captured, str(path), path, extensions)
    if path.suffix == ".rg":
        from regraft.ir.text import read_module

        module = read_module(path, ops=extensions.operators)
        num_bytes = path.stat().st_size + _external_bytes(module)
        return Source(module, str(path), sha256_of(path), num_bytes, None, None, extensions)
    from regraft.backends.onnx.runtime import OrtRunner
    from regraft.frontends.onnx import load_onnx

    module = load_onnx(path, families=extensions.onnx_importers)
    num_bytes = path.stat().st_size + _external_bytes(module)
    return Source(
        module, str(path), sha256_of(path), num_bytes,
        lambda optimize: OrtRunner(path, optimize=optimize), path, extensions,
    )  # fmt: skip


def _open_proto(proto: onnx.ModelProto, extensions: Extensions) -> Source:
    from regraft.backends.onnx.runtime import OrtRunner
    from regraft.frontends.onnx import load_onnx

    return Source(
        load_onnx(proto, families=extensions.onnx_importers), proto.graph.name or "ModelProto",
        None, None, lambda optimize: OrtRunner(proto, optimize=optimize), None, extensions,
    )  # fmt: skip


def _model_in(folder: Path) -> Path:
    model = folder / "model.onnx"
    if model.exists():
        return model
    found = sorted(folder.glob("*.onnx"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"folder `{folder}` has {len(found)} ONNX files", hint=f"name one, such as `{found[0]}`"
        )
    if (folder / "model.py").exists():
        raise InputError(
            f"`{folder}` holds a PyTorch model, which is code: it runs only when it is named",
            hint="name a function that returns (model, args): `FILE.py:FUNCTION`; docs/pytorch.md "
            "shows one",
        )
    raise InputError(
        f"folder `{folder}` has no `model.onnx`", hint="name the model file, or an output folder"
    )


def _has_onnx(folder: Path) -> bool:
    return any(folder.glob("*.onnx"))


def _external_bytes(module: Module) -> int:
    from regraft.ir.weights import MappedWeight

    weights = module.weights
    return sum(weights[n].nbytes for n in weights if isinstance(weights[n], MappedWeight))


def sha256_of(*paths: Path) -> str:
    """Returns the hex SHA-256 of files one after another, read in chunks."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
