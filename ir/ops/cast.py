"""Element types: cast, bitcast; and what keeps values: identity, and where gradients end."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.convert import TINY_FLOATS, convert
from regraft.ir.dims import DimLike
from regraft.ir.graph import Content, Node
from regraft.ir.ops.content import at_least, map_content, with_empty_inputs
from regraft.ir.ops.rounding import float_quotient, truncate_size
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]


def _infer_to(node: Node) -> Type:
    x = node.inputs[0]
    return TensorType(node.attrs["to"], None if x is None else x.shape)


def _content_cast(node: Node) -> Content | None:
    x = node.inputs[0]
    if x is None:
        return None
    to: DType = node.attrs["to"]
    if x.content is None:
        parts = float_quotient(x) if to.is_integer else None
        return None if parts is None else map_content(to, truncate_size, *parts)
    return map_content(to, _size_truth if to is DType.BOOL else _same_size, x.content)


def _same_size(a: DimLike) -> DimLike:
    return a


def _size_truth(a: DimLike) -> DimLike | None:
    if isinstance(a, int):
        return a
    return 1 if at_least(with_empty_inputs(a), 1) else None


def _eval_cast(c: Any, x: Array) -> Array:
    to: DType = c.attrs["to"]
    if c.oracle and to.is_float and to not in TINY_FLOATS and x.dtype.kind in "fiub":
        return x.astype(np.float64)  # an oracle does not round to a precision
    return convert(x, to, saturate=c.attrs["saturate"], round_mode=c.attrs["round_mode"])


cast = OpSpec(
    name="cast",
    source="ONNX Cast-25",
    operands=(Operand("x"),),
    attrs=(
        Attr("to", AttrKind.DTYPE),
        Attr("saturate", AttrKind.BOOL, True),  # 8-bit floats: out of range gives the largest
        Attr("round_mode", AttrKind.STR, "up"),  # f8e8m0: `up`, `down` or `nearest`
    ),
    traits=Trait.PURE | Trait.ELEMENTWISE | Trait.RAW,
    axes="*b -> *b",
    infer=_infer_to,
    content=_content_cast,
    eval=_eval_cast,
)


def _infer_bitcast(node: Node) -> Type:
    x, to = node.inputs[0], node.attrs["to"]
    if x is not None and x.dtype is not None and x.dtype.bits != to.bits:
        raise node.error(f"{x.dtype} has {x.dtype.bits} bits, {to} has {to.bits}")
    return _infer_to(node)


def _eval_bitcast(c: Any, x: Array) -> Any:
    source, to = c.node.inputs[0].dtype, c.attrs["to"]
    if source is not None:
        x = x.astype(source.numpy)  # an oracle's floats are wider than declared
    if to.bits == 8 or x.dtype.itemsize != 1:
        return np.ascontiguousarray(x).view(to.numpy).reshape(x.shape)
    # items of 4 and 2 bits lie unpacked in bytes; signed ones are sign-extended
    codes = x.view(np.uint8) & ((1 << to.bits) - 1)
    if to in (DType.I4, DType.I2):
        half = 1 << (to.bits - 1)
        return ((codes.astype(np.int8) ^ half) - half).astype(to.numpy)
    return codes.view(to.numpy) if to is DType.F4E2M1 else codes.astype(to.numpy)


bitcast = OpSpec(
    name="bitcast",
    source="ONNX BitCast-26",
    operands=(Operand("x"),),
    attrs=(Attr("to", AttrKind.DTYPE),),
    traits=Trait.PURE | Trait.ELEMENTWISE | Trait.RAW,
    axes="*b -> *b",
    infer=_infer_bitcast,
    eval=_eval_bitcast,
)


def _content_identity(node: Node) -> Content | None:
    x = node.inputs[0]
    return None if x is None else x.content


identity = OpSpec(
    name="identity",
    source="ONNX Identity-25",
    operands=(Operand("x"),),  # a tensor, sequence or optional
    traits=Trait.PURE | Trait.ELEMENTWISE | Trait.DATA_MOVEMENT,
    axes="*b -> *b",
    infer=infer_same,
    content=_content_identity,
    eval=lambda c, x: x,
)

stop_gradient = OpSpec(
    name="stop_gradient",
    source="PyTorch Tensor.detach",
    operands=(Operand("x"),),
    # not element-wise: what recognizes functions by their values would take it for nothing
    traits=Trait.PURE | Trait.DATA_MOVEMENT,
    axes="*b -> *b",
    infer=infer_same,
    content=_content_identity,
    eval=lambda c, x: x,
)

OPS: tuple[OpSpec, ...] = (cast, bitcast, identity, stop_gradient)
