"""Arithmetic: add, sub, mul, div, neg (the family file is extended by its siblings)."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.graph import Content, Node
from regraft.ir.opspec import Operand, OpSpec, Trait
from regraft.ir.ops.shapes import infer_broadcast, infer_same

Array = np.ndarray[Any, Any]


def content_binary(node: Node) -> Content | None:
    """Content of an integer add, sub or mul, element by element with broadcasting."""
    a, b = (value.content if value is not None else None for value in node.inputs[:2])
    dtype = node.output.dtype
    if a is None or b is None or dtype is None or not dtype.is_integer:
        return None
    fn = _CONTENT[node.op.name]
    if not isinstance(a, tuple) and not isinstance(b, tuple):
        return fn(a, b)
    size = max(len(x) if isinstance(x, tuple) else 1 for x in (a, b))
    left, right = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    left, right = (x * size if len(x) == 1 else x for x in (left, right))
    return tuple(fn(x, y) for x, y in zip(left, right, strict=True))


def _add(a: DimLike, b: DimLike) -> DimLike:
    return a + b


_CONTENT = {"add": _add, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}

_BINARY = (Operand("a"), Operand("b"))

add = OpSpec(
    name="add",
    source="ONNX Add-14",
    operands=_BINARY,
    traits=Trait.PURE | Trait.ELEMENTWISE | Trait.COMMUTATIVE,
    axes="*b, *b -> *b",
    infer=infer_broadcast,
    content=content_binary,
    eval=lambda c, a, b: np.add(a, b),
)

relu = OpSpec(
    name="relu",
    source="ONNX Relu-14",
    operands=(Operand("x"),),
    traits=Trait.PURE | Trait.ELEMENTWISE,
    axes="*b -> *b",
    infer=infer_same,
    eval=lambda c, x: np.maximum(x, 0),
)

OPS: tuple[OpSpec, ...] = (add, relu)
