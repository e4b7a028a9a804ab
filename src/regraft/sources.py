"""What can be converted: paths and objects to modules and to runners of the original."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.module import Module

if TYPE_CHECKING:
    import onnx

    from regraft.passes.check.module_check import Runner

_CHUNK = 1 << 22


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
    """

    module: Module
    label: str
    sha256: str | None
    num_bytes: int | None
    runner: Callable[[bool], Runner] | None


def open_source(source: Any) -> Source:
    """Loads a path, ModelProto or module.

    Raises:
        InputError: When the path does not exist or its content is not understood.
        UnsupportedError: For a kind of source that has no frontend yet.
    """
    if isinstance(source, Module):
        return Source(source, source.name, None, None, None)
    if isinstance(source, str | Path):
        return _open_path(Path(source))
    if type(source).__name__ == "ModelProto":
        return _open_proto(source)
    raise UnsupportedError(
        f"a source of type `{type(source).__name__}` has no frontend",
        hint="give a path to an ONNX file, a ModelProto or a regraft module",
    )


def _open_path(path: Path) -> Source:
    if path.is_dir():
        path = _model_in(path)
    if not path.exists():
        raise InputError(f"`{path}` does not exist")
    if path.suffix == ".rg":
        from regraft.ir.text import parse_module  # noqa: PLC0415

        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"`{path}` cannot be read: {error}") from error
        return Source(parse_module(text), str(path), sha256_of(path), path.stat().st_size, None)
    from regraft.backends.onnx.runtime import OrtRunner  # noqa: PLC0415
    from regraft.frontends.onnx import load_onnx  # noqa: PLC0415

    module = load_onnx(path)
    num_bytes = path.stat().st_size + _external_bytes(module)
    return Source(
        module, str(path), sha256_of(path), num_bytes,
        lambda optimize: OrtRunner(path, optimize=optimize),
    )  # fmt: skip


def _open_proto(proto: onnx.ModelProto) -> Source:
    from regraft.backends.onnx.runtime import OrtRunner  # noqa: PLC0415
    from regraft.frontends.onnx import load_onnx  # noqa: PLC0415

    return Source(
        load_onnx(proto), proto.graph.name or "ModelProto", None, None,
        lambda optimize: OrtRunner(proto, optimize=optimize),
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
    if (folder / "config.json").exists():
        raise UnsupportedError(
            f"`{folder}` looks like a Hugging Face folder, which has no frontend yet",
            hint="export it to ONNX first",
        )
    raise InputError(f"folder `{folder}` has no `model.onnx`")


def _external_bytes(module: Module) -> int:
    from regraft.ir.weights import MappedWeight  # noqa: PLC0415

    weights = module.weights
    return sum(weights[n].nbytes for n in weights if isinstance(weights[n], MappedWeight))


def sha256_of(path: Path) -> str:
    """Returns the hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
