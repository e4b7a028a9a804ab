"""Sizes as tensors: shape, size."""

from __future__ import annotations

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Content, Node
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type


def _infer_shape(node: Node) -> Type:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return TensorType(DType.I64, (node.fresh_dim(0, 0),))
    return TensorType(DType.I64, (len(x.shape[node.attrs["start"] : node.attrs["end"]]),))


def _content_shape(node: Node) -> Content | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    return x.shape[node.attrs["start"] : node.attrs["end"]]


def _content_size(node: Node) -> DimLike | None:
    x = node.inputs[0]
    return None if x is None or x.shape is None else product(x.shape)


shape = OpSpec(
    name="shape",
    source="ONNX Shape-25",
    operands=(Operand("x"),),
    attrs=(Attr("start", AttrKind.INT, 0), Attr("end", AttrKind.INT, None)),
    traits=Trait.PURE | Trait.RAW,
    infer=_infer_shape,
    content=_content_shape,
    eval=lambda c, x: np.array(x.shape[c.attrs["start"] : c.attrs["end"]], np.int64),
)

size = OpSpec(
    name="size",
    source="ONNX Size-25",
    operands=(Operand("x"),),
    traits=Trait.PURE | Trait.RAW,
    infer=lambda node: TensorType(DType.I64, ()),
    content=_content_size,
    eval=lambda c, x: np.array(x.size, np.int64),
)

OPS: tuple[OpSpec, ...] = (shape, size)
