"""TensorProto to numpy arrays and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from regraft.frontends.onnx.types import DTYPES
from regraft.ir.errors import InputError

Array = np.ndarray[Any, Any]


def tensor_to_array(tensor: onnx.TensorProto) -> Array:
    """Returns the content of an embedded tensor.

    Raises:
        InputError: When the stored bytes do not fit the declared shape and type.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InputError(f"tensor `{tensor.name}`: unknown element type {tensor.data_type}")
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise InputError(f"tensor `{tensor.name}`: {error}") from error
    if array.dtype != dtype.numpy and array.dtype.kind not in "OUS":
        array = array.view(dtype.numpy) if array.itemsize == dtype.numpy.itemsize else array.astype(
            dtype.numpy
        )
    return array
