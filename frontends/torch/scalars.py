"""Numbers that a graph computes from sizes and elements: SymInt, SymFloat, SymBool, `item()`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.call import UnsupportedCallError, size_value
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, functions, logical, rounding
from regraft.ir.ops.cast import cast
from regraft.ir.ops.fill import range_
from regraft.ir.ops.reshaping import reshape
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

if TYPE_CHECKING:
    from regraft.frontends.torch.importer import GraphImporter


def import_scalar(importer: GraphImporter, node: torch.fx.Node) -> Any:
    """Returns a number node: a dim for an integer, else a 0-d tensor made where it is used.

    Raises:
        UnsupportedCallError: For a function without an IR form.
    """
    val = node.meta.get("val")
    if isinstance(val, torch.SymInt):
        return importer.session.sizes.size(val)
    if isinstance(val, bool | int | float):
        return val
    if val is None and node.target in (operator.is_, operator.is_not):
        raise UnsupportedCallError("identity of objects is not computed")
    operands = [_operand(importer, arg) for arg in node.args]
    importer.b.loc = importer.session.locations.of(node.meta)
    return scalar_call(importer.b, node.target, operands)


def _operand(importer: GraphImporter, arg: Any) -> Value:
    found = importer.convert(arg)
    if isinstance(found, Handle):
        return found.read()
    return number(importer.b, found)


def number(b: Builder, found: Any) -> Value:
    """Returns a number as a 0-d tensor: i64, f64 or bool."""
    if isinstance(found, Value):
        return found
    if isinstance(found, Dim):
        return size_value(b, found)
    dtype = DType.BOOL if isinstance(found, bool) else DType.I64
    return b.constant(np.asarray(found), DType.F64 if isinstance(found, float) else dtype)


def scalar_call(b: Builder, function: Any, operands: list[Value]) -> Value:
    """Returns a Python function of numbers as a 0-d tensor."""
    made = _FUNCTIONS.get(function)
    if made is None:
        raise UnsupportedCallError(f"number function `{getattr(function, '__name__', function)}`")
    return made(b, *operands)


def _float(b: Builder, x: Value) -> Value:
    return x if x.dtype is DType.F64 else b.op(cast, x, to=DType.F64)


def _same(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    if x.dtype is y.dtype:
        return x, y
    return _float(b, x), _float(b, y)


def _binary(spec: OpSpec) -> Callable[..., Value]:
    return lambda b, x, y: b.op(spec, *_same(b, x, y))


def _of_floats(spec: OpSpec) -> Callable[..., Value]:
    return lambda b, *xs: b.op(spec, *(_float(b, x) for x in xs))


def _identity(b: Builder, x: Value) -> Value:
    return x


def _to_int(b: Builder, x: Value) -> Value:
    return x if x.dtype is DType.I64 else b.op(cast, x, to=DType.I64)  # towards zero


def _rounded(spec: OpSpec) -> Callable[..., Value]:
    return lambda b, x: _to_int(b, b.op(spec, _float(b, x)) if x.dtype is not DType.I64 else x)


def _not_equal(b: Builder, x: Value, y: Value) -> Value:
    return b.op(logical.logical_not, b.op(logical.equal, *_same(b, x, y)))


_FUNCTIONS: dict[Any, Callable[..., Value]] = {
    torch.sym_float: _float,
    torch.sym_int: _to_int,
    operator.add: _binary(arithmetic.add),
    operator.sub: _binary(arithmetic.sub),
    operator.mul: _binary(arithmetic.mul),
    operator.truediv: _of_floats(arithmetic.div),
    operator.pow: _of_floats(arithmetic.pow_),
    operator.neg: lambda b, x: b.op(arithmetic.neg, x),
    operator.lt: _binary(logical.less),
    operator.gt: _binary(logical.greater),
    operator.le: _binary(logical.less_or_equal),
    operator.ge: _binary(logical.greater_or_equal),
    operator.eq: _binary(logical.equal),
    operator.ne: _not_equal,
    operator.and_: lambda b, x, y: b.op(logical.logical_and, x, y),
    operator.or_: lambda b, x, y: b.op(logical.logical_or, x, y),
    operator.not_: lambda b, x: b.op(logical.logical_not, x),
    torch.sym_not: lambda b, x: b.op(logical.logical_not, x),
    math.sqrt: _of_floats(functions.sqrt),
    torch._sym_sqrt: _of_floats(functions.sqrt),
    math.floor: _rounded(rounding.floor),
    math.ceil: _rounded(rounding.ceil),
    math.trunc: _to_int,
    torch.sym_max: _binary(arithmetic.max_),
    torch.sym_min: _binary(arithmetic.min_),
}


def import_item(importer: GraphImporter, node: torch.fx.Node, name: str) -> None:
    """Imports a call that gives a number: the size of an axis, or an element of a tensor.

    An integer element becomes a defined size of the IR on its first use: sizes are read from
    shapes, so a range of that many elements is its definition.
    """
    val = node.meta.get("val")
    sizes = importer.session.sizes
    if name not in ("aten.item.default", "aten._local_scalar_dense.default"):
        if isinstance(val, torch.SymInt):
            importer.env[node] = sizes.size(val)
        else:
            importer.env[node] = val
        return
    tensor = importer.convert(node.args[0]).read()
    b = importer.b
    b.loc = importer.session.locations.of(node.meta)
    if not isinstance(val, torch.SymInt):
        importer.env[node] = _scalar(b, tensor)
        return
    expr = val.node.expr
    content = tensor.content[0] if isinstance(tensor.content, tuple) else tensor.content
    if content is None:
        content = counted(b, tensor)
    if expr.is_Symbol and not sizes.knows(expr):
        sizes.define(expr, content)
    importer.env[node] = sizes.size(val)


def counted(b: Builder, value: Value) -> DimLike:
    """Returns the only element of a tensor as a defined size: that of a range of its length."""
    zero, one = b.constant(0, DType.I64), b.constant(1, DType.I64)
    return (b.op(range_, zero, _scalar(b, _to_int(b, value)), one).shape or (0,))[0]


def _scalar(b: Builder, value: Value) -> Value:
    return value if value.rank == 0 else b.op(reshape, value, shape=())
