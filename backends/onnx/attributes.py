"""Python values to ONNX attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from regraft.backends.onnx.tensors import ONNX_DTYPES, array_to_tensor
from regraft.ir.constants import Blob
from regraft.ir.types import DType


def make_attribute(name: str, value: Any) -> onnx.AttributeProto:
    """Returns an AttributeProto for a Python value, array, DType or GraphProto."""
    if isinstance(value, Blob):
        parsed: onnx.AttributeProto = onnx.AttributeProto.FromString(value.data)
        return parsed
    if isinstance(value, onnx.AttributeProto):
        return value
    if isinstance(value, DType):
        value = ONNX_DTYPES[value]
    elif isinstance(value, np.ndarray):
        value = array_to_tensor(value, "")
    elif isinstance(value, bool):
        value = int(value)
    kind = onnx.AttributeProto.INTS if isinstance(value, tuple) and not value else None
    made: onnx.AttributeProto = helper.make_attribute(name, value, attr_type=kind)
    return made
