"""In-place calls whose new content does not come from a functional overload of that name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.ops.cast import cast
from regraft.ir.ops.repeating import expand
from regraft.ir.types import TensorType

Write = Callable[[Builder, Value, Mapping[str, Any]], Value]
"""(builder, content before, arguments) -> content after."""


def fill(b: Builder, type_: TensorType, content: Any) -> Value:
    """Returns a tensor of a type made of one number or a broadcast tensor."""
    if type_.dtype is None or type_.shape is None:
        raise AssertionError("tensors of an export have types")
    if isinstance(content, Value):
        value = content if content.dtype is type_.dtype else b.op(cast, content, to=type_.dtype)
    else:
        value = b.constant(np.asarray(content), type_.dtype)
    return value if value.shape == type_.shape else b.op(expand, value, shape=type_.shape)


def _type(value: Value) -> TensorType:
    if not isinstance(value.type, TensorType):
        raise TypeError("a tensor has a tensor type")
    return value.type


WRITES: dict[str, Write] = {
    "aten.copy_.default": lambda b, x, args: fill(b, _type(x), args["src"]),
    "aten.fill_.Scalar": lambda b, x, args: fill(b, _type(x), args["value"]),
    "aten.fill_.Tensor": lambda b, x, args: fill(b, _type(x), args["value"]),
    "aten.zero_.default": lambda b, x, args: fill(b, _type(x), 0),
}
