"""Moves *either* parameters whose operand is known from the operand to the attribute."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim
from regraft.ir.graph import Node, Value
from regraft.ir.ops import fill, reshaping, sequence
from regraft.ir.opspec import AttrKind, Operand, OpSpec
from regraft.ir.rewrite import LocalRule, Rewriter, RuleSet

_FLOATS = (AttrKind.FLOAT, AttrKind.FLOATS)
_TUPLES = (AttrKind.INTS, AttrKind.DIMS, AttrKind.FLOATS)


def _has_either(op: OpSpec) -> bool:
    return any(operand.either is not None for operand in op.operands)


def _make_static(node: Node, rw: Rewriter) -> bool:
    """op(x, operand of known content) -> op(x) {attribute}."""
    operands: dict[int, None] = {}
    attrs: dict[str, Any] = {}
    for idx, operand in enumerate(node.op.operands):
        if operand.either is None or idx >= len(node.inputs):
            continue
        value = node.inputs[idx]
        if value is None or node.attrs[operand.name] is not None:
            continue
        if node.op is sequence.split_to_sequence and value.rank != 1:
            continue  # a scalar is the size of every part, a list of one is one part
        static = static_value(operand, value)
        if node.op is reshaping.reshape and static is not None:
            x = node.inputs[0]
            static = reshaping.resolve_reshape(
                None if x is None else x.shape, static, node.attrs["allow_zero"]
            )
        # no axes at all is a meaning of its own: all of them, or none
        if static is None or (operand.name == "axes" and static == ()):
            continue
        if node.op is fill.range_:
            attrs["dtype"] = node.outputs[0].dtype  # it was that of the operands
        attrs[operand.name] = static
        operands[idx] = None
    if operands:
        rw.update(node, operands, attrs)
    return bool(operands)


def static_value(operand: Operand, value: Value) -> Any:
    """Returns an operand's content in the form of its attribute, or None."""
    kind = operand.either
    if kind is AttrKind.ARRAY:
        return constant_of(value)
    content = value.content
    if content is None or kind in _FLOATS:
        content = _numbers(value, floats=kind in _FLOATS)
    if content is None:
        return None
    if kind in _TUPLES:
        items = content if isinstance(content, tuple) else (content,)
        symbolic = any(isinstance(item, Dim) for item in items)
        return None if symbolic and kind is not AttrKind.DIMS else items
    if isinstance(content, tuple):
        if len(content) != 1:
            return None
        content = content[0]
    if isinstance(content, Dim) and kind is not AttrKind.DIM:
        return None
    return bool(content) if kind is AttrKind.BOOL else content


def _numbers(value: Value, *, floats: bool) -> Any:
    """Returns the numbers of a constant, None where Python's do not equal them."""
    array = constant_of(value)
    if array is None or array.ndim > 1 or array.dtype == object:
        return None
    if array.dtype.kind not in "iub":
        if not floats:
            return None
        array = array.astype(np.float64)
    items = array.reshape(-1).tolist()
    numbers = tuple(map(float if floats else int, items))
    if numbers != tuple(items):
        return None  # NaN, or an integer that no float holds
    return numbers if array.ndim else numbers[0]


RULES = RuleSet(LocalRule("static-parameter", _has_either, _make_static))
