"""Floating-point operations and multiply-accumulates of a node, as symbolic sizes.

Conventions:

- An operator that contracts (a `~` label shared by two operands: matrix products, convolutions,
  attention) counts its contractions only, 2 operations per multiply-accumulate. Biases and the
  softmax inside attention are not counted, as is usual in the literature.
- An element-wise operator counts one operation per result element, whatever its function.
- Data movement, constants and operators with integer or bool results that contract nothing count 0.
- Other operators state their count; `softmax` takes 5 per element, a reduction 1 per operand
  element.
- What is not known is None, never 0.
"""

from __future__ import annotations

from regraft.ir.axes import AxisRule, Role, Star
from regraft.ir.axis_binding import bind_node, rule_of
from regraft.ir.dims import DimLike, exactdiv, product
from regraft.ir.graph import Node
from regraft.ir.ops.causal_conv import causal_conv
from regraft.ir.ops.conv import conv, conv_transpose
from regraft.ir.opspec import Trait

_FREE = Trait.DATA_MOVEMENT | Trait.CONSTANT

_CONVOLUTIONS = (conv, conv_transpose, causal_conv)
"""Multiply and accumulate over their taps, also where one channel at a time leaves no label to."""


def flops_of(node: Node) -> DimLike | None:
    """Returns the floating-point operations of one call, None when they are not known."""
    op = node.op
    if op.flops is not None:
        return op.flops(node)
    if op.traits & _FREE:
        return 0
    dtype = node.output.dtype
    is_whole = dtype is not None and not (dtype.is_float or dtype.is_complex)
    if Trait.ELEMENTWISE in op.traits:
        shape = node.output.shape
        return 0 if is_whole else None if shape is None else product(shape)
    rule = rule_of(node)
    if rule is not None and not rule.has_fixed and contracted(rule):
        volume = _volume(node, rule)
        return None if volume is None else 2 * volume
    return 0 if is_whole else None


def macs_of(node: Node) -> DimLike | None:
    """Returns the multiply-accumulates of one call: 0 where nothing is contracted."""
    flops = flops_of(node)
    if flops is None or flops == 0:
        return flops
    if Trait.ELEMENTWISE in node.op.traits:
        return 0
    if node.op in _CONVOLUTIONS:
        return exactdiv(flops, 2)
    rule = rule_of(node)
    if rule is None:
        return None
    return exactdiv(flops, 2) if contracted(rule) else 0


def contracted(rule: AxisRule) -> frozenset[str]:
    """Returns the sum labels that two operands share."""
    seen: set[str] = set()
    shared: set[str] = set()
    for term in rule.operands:
        own = {
            factor.name
            for axis in term or ()
            for factor in ((axis,) if isinstance(axis, Star) else axis)
            if factor.role is Role.SUM
        }
        shared |= own & seen
        seen |= own
    return frozenset(shared)


def _volume(node: Node, rule: AxisRule) -> DimLike | None:
    """Returns the product of all label sizes."""
    try:
        bound = bind_node(node, rule)
    except ValueError as error:
        raise node.error(str(error)) from error
    labels = {
        factor.name
        for axes in (*bound.operands, *bound.results)
        for axis in axes or ()
        for factor in axis
    }
    if not labels <= bound.sizes.keys():
        return None
    return product(bound.sizes[label] for label in sorted(labels))
