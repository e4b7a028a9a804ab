"""ONNX attributes to Python values."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto

from regraft.frontends.onnx.tensors import tensor_to_array


def decode_attribute(attr: onnx.AttributeProto) -> Any:
    """Returns an int, float, str (bytes when not UTF-8), tuple, numpy array or proto."""
    match attr.type:
        case AttributeProto.INT:
            return int(attr.i)
        case AttributeProto.FLOAT:
            return float(attr.f)
        case AttributeProto.STRING:
            return _text(attr.s)
        case AttributeProto.INTS:
            return tuple(attr.ints)
        case AttributeProto.FLOATS:
            return tuple(attr.floats)
        case AttributeProto.STRINGS:
            return tuple(_text(item) for item in attr.strings)
        case AttributeProto.TENSOR:
            return tensor_to_array(attr.t)
        case AttributeProto.GRAPH:
            return attr.g
        case _:
            return attr


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
