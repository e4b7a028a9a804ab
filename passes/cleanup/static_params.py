"""Moves *either* parameters whose operand is known from the operand to the attribute."""

from __future__ import annotations

from typing import Any

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim
from regraft.ir.graph import Node, Value
from regraft.ir.ops import fill, reshaping
from regraft.ir.opspec import AttrKind, Operand, OpSpec
from regraft.ir.rewrite import LocalRule, Rewriter, RuleSet

_SCALARS = (AttrKind.INT, AttrKind.DIM, AttrKind.FLOAT, AttrKind.BOOL)
_TUPLES = (AttrKind.INTS, AttrKind.DIMS, AttrKind.FLOATS)


def _has_either(op: OpSpec) -> bool:
    return any(operand.either is not None for operand in op.operands)


def _make_static(node: Node, rw: Rewriter) -> bool:
    """op(x, operand of known content) -> op(x) {attribute}."""
    changed = False
    for idx, operand in enumerate(node.op.operands):
        if operand.either is None or idx >= len(node.inputs):
            continue
        value = node.inputs[idx]
        if value is None or node.attrs[operand.name] is not None:
            continue
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
            node.attrs["dtype"] = node.outputs[0].dtype  # it was that of the operands
        node.attrs[operand.name] = static
        rw.set_operand(node, idx, None)
        changed = True
    if changed:
        rw.update(node)
    return changed


def static_value(operand: Operand, value: Value) -> Any:
    """Returns an operand's content in the form of its attribute, or None."""
    kind = operand.either
    content: Any = value.content
    if content is None or kind in (AttrKind.FLOAT, AttrKind.FLOATS, AttrKind.ARRAY):
        array = constant_of(value)
        if array is None or array.dtype == object:
            return None
        if kind is AttrKind.ARRAY:
            return array
        if array.dtype.kind == "V":
            array = array.astype("float32")
        if kind is AttrKind.FLOAT or kind is AttrKind.FLOATS:
            content = tuple(float(x) for x in array.reshape(-1))
            if any(a != b for a, b in zip(content, array.reshape(-1).tolist(), strict=True)):
                return None  # NaN, or an integer that no float holds
        elif array.dtype.kind in "iub":
            content = tuple(int(x) for x in array.reshape(-1))
        else:
            return None
        content = content if array.ndim else content[0]
    if kind in _SCALARS:
        if isinstance(content, tuple):
            if len(content) != 1:
                return None
            content = content[0]
        if kind is AttrKind.BOOL:
            return None if isinstance(content, Dim) else bool(content)
        return None if isinstance(content, Dim) and kind is not AttrKind.DIM else content
    if kind in _TUPLES:
        content = content if isinstance(content, tuple) else (content,)
        if kind is not AttrKind.DIMS and any(isinstance(item, Dim) for item in content):
            return None
        return content
    return None


RULES = RuleSet(LocalRule("static-parameter", _has_either, _make_static))
