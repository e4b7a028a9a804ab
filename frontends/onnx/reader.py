"""Reads ONNX files as untrusted data: structure checked before anything is built from it."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from regraft.ir.errors import InputError

MAX_PROTO_BYTES = (1 << 31) - 1
"""Protobuf cannot hold more in one message."""


def read_proto(path: Path) -> onnx.ModelProto:
    """Parses an ONNX file; external data is not read.

    Raises:
        InputError: When the file cannot be read or is no ONNX model.
    """
    try:
        size = path.stat().st_size
        if size > MAX_PROTO_BYTES:
            raise InputError(
                f"`{path}` has {size} bytes, more than a protobuf can hold",
                hint="it is no ONNX model, or its weights should be external data",
            )
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise InputError(
            f"`{path}` is a folder, expected an ONNX file", hint="name the file in it"
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"`{path}` does not exist", hint="check the path") from error
    except OSError as error:
        raise InputError(
            f"`{path}` cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error
    return parse_proto(data, f"`{path}`")


def parse_proto(data: bytes, where: str = "model") -> onnx.ModelProto:
    """Parses serialized bytes; see `read_proto`."""
    if not data:
        raise InputError(f"{where} is empty", hint="export or copy it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InputError(
            f"{where} is not an ONNX model: the protobuf is corrupt or truncated",
            hint="export or copy it again and compare the sizes",
        ) from error
    check_proto(proto, where)
    return proto


def check_proto(proto: onnx.ModelProto, where: str = "model") -> None:
    """Checks the parts that every model has.

    Raises:
        InputError: Naming what is missing.
    """
    if not proto.HasField("graph"):
        raise InputError(
            f"{where} is not an ONNX model: it has no graph",
            hint="the file may be truncated, or of another format",
        )
    if not proto.opset_import:
        raise InputError(
            f"{where} declares no opset version", hint="the file may be truncated; export it again"
        )
    newest = onnx.defs.onnx_opset_version()
    for item in proto.opset_import:
        if item.domain in ("", "ai.onnx") and not 1 <= item.version <= newest:
            raise InputError(
                f"{where} declares opset {item.version}, expected 1 to {newest}",
                hint="the file is damaged, or written for a newer `onnx` than is installed",
            )
