"""Optional values: None where absent, else the value itself."""

from __future__ import annotations

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import UNKNOWN, DType, OptionalType, TensorType, Type

_RAW = Trait.PURE | Trait.RAW


def _infer_optional(node: Node) -> Type:
    x = node.inputs[0]
    return OptionalType(node.attrs["element"] if x is None else x.type)


def _infer_get(node: Node) -> Type:
    x = node.inputs[0]
    if x is not None and isinstance(x.type, OptionalType):
        return UNKNOWN if x.type.element is None else x.type.element
    return UNKNOWN if x is None else x.type


optional = OpSpec(
    name="optional",
    source="ONNX Optional-15",
    operands=(Operand("x", optional=True),),
    attrs=(Attr("element", AttrKind.TYPE, None),),  # type of the absent value
    traits=_RAW,
    infer=_infer_optional,
    eval=lambda c, x: x,
)

optional_has_element = OpSpec(
    name="optional_has_element",
    source="ONNX OptionalHasElement-18",
    operands=(Operand("x", optional=True),),
    traits=_RAW,
    infer=lambda node: TensorType(DType.BOOL, ()),
    eval=lambda c, x: np.array(x is not None),
)

optional_get_element = OpSpec(
    name="optional_get_element",
    source="ONNX OptionalGetElement-18",
    operands=(Operand("x"),),
    traits=_RAW,
    infer=_infer_get,
    eval=lambda c, x: x,
)

OPS: tuple[OpSpec, ...] = (optional, optional_has_element, optional_get_element)
