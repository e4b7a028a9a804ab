"""Truth values, comparisons, selection and bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.graph import Content, Node
from regraft.ir.ops.content import (
    binary_content,
    map_content,
    size_equal,
    size_less,
    unary_content,
    whole_content,
)
from regraft.ir.ops.pointwise import binary, predicate, unary
from regraft.ir.ops.shapes import broadcast, infer_broadcast
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]


def _size_not(a: DimLike) -> int | None:
    return 1 - a if isinstance(a, int) else None


def _size_less_or_equal(a: DimLike, b: DimLike) -> int | None:
    greater = size_less(b, a)
    return None if greater is None else 1 - greater


logical_and = predicate(
    "logical_and", "ONNX And-7", np.logical_and,
    traits=Trait.COMMUTATIVE, content=binary_content(lambda a, b: a * b),
)  # fmt: skip
logical_or = predicate(
    "logical_or", "ONNX Or-7", np.logical_or,
    traits=Trait.COMMUTATIVE, content=binary_content(lambda a, b: a + b - a * b),
)  # fmt: skip
logical_xor = predicate(
    "logical_xor", "ONNX Xor-7", np.logical_xor,
    traits=Trait.COMMUTATIVE, content=binary_content(lambda a, b: a + b - 2 * a * b),
)  # fmt: skip
logical_not = predicate(
    "logical_not", "ONNX Not-1", np.logical_not,
    num_operands=1, content=unary_content(_size_not),
)  # fmt: skip

equal = predicate(
    "equal", "ONNX Equal-19", np.equal,
    traits=Trait.COMMUTATIVE | Trait.DISCRETE, content=binary_content(size_equal),
)  # fmt: skip
less = predicate(
    "less", "ONNX Less-13", np.less, traits=Trait.DISCRETE, content=binary_content(size_less)
)
less_or_equal = predicate(
    "less_or_equal", "ONNX LessOrEqual-16", np.less_equal,
    traits=Trait.DISCRETE, content=binary_content(_size_less_or_equal),
)  # fmt: skip
greater = predicate(
    "greater", "ONNX Greater-13", np.greater,
    traits=Trait.DISCRETE, content=binary_content(lambda a, b: size_less(b, a)),
)  # fmt: skip
greater_or_equal = predicate(
    "greater_or_equal", "ONNX GreaterOrEqual-16", np.greater_equal,
    traits=Trait.DISCRETE, content=binary_content(lambda a, b: _size_less_or_equal(b, a)),
)  # fmt: skip


def _infer_where(node: Node) -> Type:
    _, a, b = node.inputs
    dtype = next((v.dtype for v in (a, b) if v is not None and v.dtype is not None), None)
    return TensorType(dtype, broadcast(node, *(v.shape for v in node.inputs if v is not None)))


def _content_where(node: Node) -> Content | None:
    condition, a, b = node.inputs
    if condition is None or a is None or b is None or condition.content is None:
        return None
    chosen = condition.content
    left, right = whole_content(a), whole_content(b)
    if left is not None and right is not None:
        return map_content(node.output.dtype, _select, chosen, left, right)
    # one side alone is the result when no element comes from the other and none is repeated
    known, side, wanted = (right, b, 0) if left is None else (left, a, 1)
    items = chosen if isinstance(chosen, tuple) else (chosen,)
    decided = all(item == wanted for item in items) and side.shape == node.output.shape
    return known if decided else None


def _select(truth: DimLike, a: DimLike, b: DimLike) -> DimLike | None:
    return (a if truth else b) if isinstance(truth, int) else None


where = OpSpec(
    name="where",
    source="ONNX Where-16",
    operands=(Operand("condition"), Operand("a"), Operand("b")),
    traits=Trait.PURE | Trait.ELEMENTWISE | Trait.RAW,
    axes="*b, *b, *b -> *b",
    infer=_infer_where,
    content=_content_where,
    eval=lambda c, condition, a, b: np.where(condition, a, b),
)

bitwise_and = binary("bitwise_and", "ONNX BitwiseAnd-18", np.bitwise_and, traits=Trait.COMMUTATIVE)
bitwise_or = binary("bitwise_or", "ONNX BitwiseOr-18", np.bitwise_or, traits=Trait.COMMUTATIVE)
bitwise_xor = binary("bitwise_xor", "ONNX BitwiseXor-18", np.bitwise_xor, traits=Trait.COMMUTATIVE)
bitwise_not = unary("bitwise_not", "ONNX BitwiseNot-18", np.invert)


def _eval_bit_shift(c: Any, a: Array, b: Array) -> Any:
    num_bits = 8 * a.dtype.itemsize
    beyond = (b < 0) | (b >= num_bits)
    amount = np.where(beyond, 0, b).astype(a.dtype)
    if c.attrs["left"]:
        return np.where(beyond, a.dtype.type(0), np.left_shift(a, amount))
    # what is left after all bits are gone: copies of the sign
    rest = np.where(a < 0, a.dtype.type(-1) if a.dtype.kind == "i" else a.dtype.type(0), 0)
    return np.where(beyond, rest, np.right_shift(a, amount)).astype(a.dtype)


bit_shift = OpSpec(
    name="bit_shift",
    source="ONNX BitShift-28",
    operands=(Operand("a"), Operand("b")),
    attrs=(Attr("left", AttrKind.BOOL),),
    traits=Trait.PURE | Trait.ELEMENTWISE,
    axes="*b, *b -> *b",
    infer=infer_broadcast,
    eval=_eval_bit_shift,
)

OPS: tuple[OpSpec, ...] = (
    logical_and, logical_or, logical_xor, logical_not,
    equal, less, less_or_equal, greater, greater_or_equal, where,
    bitwise_and, bitwise_or, bitwise_xor, bitwise_not, bit_shift,
)  # fmt: skip
