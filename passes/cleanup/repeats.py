"""Broadcasts and padding that do nothing: expand, tile, pad."""

from __future__ import annotations

from regraft.ir.graph import Node
from regraft.ir.ops import attention, repeating
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import LocalRule, Rewriter, RuleSet, local_rule
from regraft.passes.cleanup.facts import broadcasts_to, is_broadcasting, made_by, same_type


@local_rule(repeating.expand)
def expand_to_own_shape(node: Node, rw: Rewriter) -> bool:
    """expand(x, shape of x) -> x."""
    x = node.inputs[0]
    if x is None or not same_type(x, node.outputs[0]):
        return False
    rw.replace(node, x)
    return True


@local_rule(repeating.tile)
def tile_by_one(node: Node, rw: Rewriter) -> bool:
    """tile(x, 1) -> x."""
    x, repeats = node.inputs[0], node.attrs["repeats"]
    if x is None or repeats is None or any(count != 1 for count in repeats):
        return False
    rw.replace(node, x)
    return True


@local_rule(repeating.pad)
def pad_by_zero(node: Node, rw: Rewriter) -> bool:
    """pad(x, 0) -> x."""
    x, pads = node.inputs[0], node.attrs["pads"]
    if x is None or pads is None or any(amount != 0 for amount in pads):
        return False
    rw.replace(node, x)
    return True


def _broadcasts(op: OpSpec) -> bool:
    return is_broadcasting(op) and op.axes in ("*b, *b -> *b", "*b, *b, *b -> *b")


def _expand_is_implied(node: Node, rw: Rewriter) -> bool:
    """f(expand(x), y) -> f(x, y) where y brings the expanded sizes anyway."""
    out = node.outputs[0].shape
    if out is None:
        return False
    for idx, value in enumerate(node.inputs):
        inner = made_by(value, repeating.expand)
        if inner is None or inner.inputs[0] is None:
            continue
        x = inner.inputs[0]
        rest = [
            other.shape for i, other in enumerate(node.inputs) if other is not None and i != idx
        ]
        if broadcasts_to(x.shape, out) and out in rest:
            rw.update(node, {idx: x})
            return True
    return False


expand_is_implied = LocalRule("expand-is-implied", _broadcasts, _expand_is_implied)


@local_rule(attention.attention)
def mask_expand_is_implied(node: Node, rw: Rewriter) -> bool:
    """attention(…, expand(mask)) -> attention(…, mask): masks broadcast to the scores."""
    q, k, _, mask = node.inputs[:4]
    inner = made_by(mask, repeating.expand)
    if inner is None or q is None or k is None or q.shape is None or k.shape is None:
        return False
    x = inner.inputs[0]
    if x is None or not broadcasts_to(x.shape, (*q.shape[:3], k.shape[2])):
        return False
    rw.update(node, {3: x})
    return True


RULES = RuleSet(
    expand_to_own_shape, tile_by_one, pad_by_zero, expand_is_implied, mask_expand_is_implied
)
