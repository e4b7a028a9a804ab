"""Importers of constants, of tensors made from sizes, and of running sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from regraft.frontends.onnx.importer import Import, Imported, Importer, NodeImport
from regraft.frontends.onnx.tensors import tensor_to_array
from regraft.frontends.onnx.text_fields import is_named_freely
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.builder import INLINE_BYTES
from regraft.ir.graph import Value
from regraft.ir.ops import cumulative, fill
from regraft.ir.opspec import OpSpec
from regraft.ir.weights import ArrayWeight, Role

Array = np.ndarray[Any, Any]

_FORMS: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}

_UNNAMED: dict[int, Any] = {
    onnx.AttributeProto.FLOAT: np.float32,
    onnx.AttributeProto.FLOATS: np.float32,
    onnx.AttributeProto.INT: np.int64,
    onnx.AttributeProto.INTS: np.int64,
}


def _constant(item: NodeImport) -> Value:
    array = _constant_array(item)
    if array.nbytes <= INLINE_BYTES or array.dtype == object:
        return item.b.constant(array)
    name = item.proto.output[0]
    # some exporters keep trained weights in Constant nodes: large float tensors are parameters
    is_param = array.dtype.kind in "fV" and array.ndim >= 1
    return item.b.weight(name, ArrayWeight(array), Role.PARAM if is_param else Role.CONST)


def _constant_array(item: NodeImport) -> Array:
    value = item.attr("value")
    if value is not None:
        return value  # type: ignore[no-any-return]  # a TENSOR attribute is decoded to an array
    sparse = item.attr("sparse_value")
    if sparse is not None:
        return _dense(sparse.sparse_tensor)
    for name, dtype in _FORMS.items():
        if name in item.attrs:
            return np.array(item.attrs[name], dtype)
    if is_named_freely(item.proto):
        (only,) = item.attrs.values()
        if isinstance(only, np.ndarray):
            return only
        dtype = _UNNAMED.get(item.proto.attribute[0].type)
        if dtype is not None:
            return np.array(only, dtype)
    raise item.error("no value attribute", hint=f"one of value, sparse_value, {', '.join(_FORMS)}")


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values, indices = tensor_to_array(sparse.values), tensor_to_array(sparse.indices)
    result = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:  # positions in row-major order
        result.reshape(-1)[indices] = values
    else:
        result[tuple(indices.T)] = values
    return result


def _constant_of_shape(item: NodeImport) -> Value:
    operand, shape = item.either(0)
    value = item.attr("value")
    if value is not None and value.size != 1:
        raise item.error(
            f"`value` has {value.size} elements, expected one",
            hint="the result holds one number; export the model again",
        )
    return item.b.op(
        fill.constant_of_shape,
        operand,
        shape=shape,
        value=np.zeros(1, np.float32) if value is None else value.reshape(1),
    )


def _scalar(item: NodeImport, idx: int) -> tuple[Value | None, Any]:
    """Splits a scalar *either* operand; one element of rank 1 counts as a scalar."""
    operand, static = item.either(idx)
    if isinstance(static, tuple):
        if len(static) != 1:
            raise item.error(f"operand {idx} has {len(static)} elements, expected a scalar")
        static = static[0]
    return operand, static


def _range(item: NodeImport) -> Value:
    dtypes = [item.require(idx).dtype for idx in range(3)]
    dtype = next((each for each in dtypes if each is not None), None)
    operands: list[Value | None] = []
    attrs: dict[str, Any] = {}
    for idx, name in enumerate(("start", "limit", "delta")):
        operand, attrs[name] = (item.input(idx), None) if dtype is None else _scalar(item, idx)
        operands.append(operand)
    return item.b.op(fill.range_, *operands, dtype=dtype, **attrs)


def _eye_like(item: NodeImport) -> Imported:
    code = item.attr("dtype")
    dtype = None if code is None else DTYPES.get(code)
    if code is not None and dtype is None:
        return item.opaque()
    return item.b.op(fill.eye_like, item.require(0), dtype=dtype, k=item.attr("k", 0))


def _trilu(item: NodeImport) -> Value:
    operand, k = _scalar(item, 1)
    upper = bool(item.attr("upper", 1))
    return item.b.op(fill.trilu, item.require(0), operand, k=k, upper=upper)


def _cumulative(spec: OpSpec) -> Importer:
    def run(item: NodeImport) -> Value:
        x = item.require(0)
        operand, axis = _scalar(item, 1)
        if axis is not None and x.rank is not None:
            if not -x.rank <= axis < x.rank:
                raise item.error(f"axis {axis} is out of range for rank {x.rank}")
            axis %= x.rank
        return item.b.op(
            spec, x, operand, axis=axis,
            exclusive=bool(item.attr("exclusive", 0)), reverse=bool(item.attr("reverse", 0)),
        )  # fmt: skip

    return run


IMPORTS: tuple[Import, ...] = (
    Import("Constant", {1: _constant}),
    Import("ConstantOfShape", {9: _constant_of_shape}),
    Import("Range", {11: _range}),
    Import("EyeLike", {9: _eye_like}),
    Import("Trilu", {14: _trilu}),
    Import("CumSum", {11: _cumulative(cumulative.cumsum)}),
    Import("CumProd", {26: _cumulative(cumulative.cumprod)}),
)
