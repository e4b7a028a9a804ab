"""In-place calls whose new content does not come from a functional overload of that name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regraft.frontends.torch.call import UnsupportedCallError
from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.ops.cast import cast
from regraft.ir.ops.fill import range_
from regraft.ir.ops.logical import equal, logical_and
from regraft.ir.ops.logical import where as where_
from regraft.ir.ops.repeating import expand
from regraft.ir.ops.reshaping import reshape
from regraft.ir.types import DType, TensorType

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


def _resized(b: Builder, x: Value, template: Value) -> Value:
    """Returns a tensor of the template's sizes; what it holds is not specified."""
    return fill(b, TensorType(x.dtype, template.shape), 0)


def _with_diagonal(b: Builder, x: Value, args: Mapping[str, Any]) -> Value:
    """Returns a matrix whose diagonal is a number; of a tall one the diagonal may start again."""
    shape = x.shape or ()
    if args.get("wrap") and len(shape) == 2:
        raise UnsupportedCallError("a diagonal that starts again below")
    ranges = [
        b.op(
            reshape,
            b.op(range_, start=0, limit=size, delta=1, dtype=DType.I64),
            shape=tuple(size if i == axis else 1 for i in range(len(shape))),
        )
        for axis, size in enumerate(shape)
    ]
    where = b.op(equal, ranges[0], ranges[1])
    for other in ranges[2:]:
        where = b.op(logical_and, where, b.op(equal, ranges[0], other))
    return b.op(where_, where, b.constant(np.asarray(args["fill_value"]), x.dtype), x)


WRITES: dict[str, Write] = {
    "aten.copy_.default": lambda b, x, args: fill(b, _type(x), args["src"]),
    "aten.fill_.Scalar": lambda b, x, args: fill(b, _type(x), args["value"]),
    "aten.fill_.Tensor": lambda b, x, args: fill(b, _type(x), args["value"]),
    "aten.zero_.default": lambda b, x, args: fill(b, _type(x), 0),
    "aten.resize_as_.default": lambda b, x, args: _resized(b, x, args["the_template"]),
    "aten.fill_diagonal_.default": _with_diagonal,
}
