"""Other axes for the same elements: chains of reshape, squeeze, unsqueeze and identity copies.

squeeze and unsqueeze become `reshape` with the sizes of the result, so that one rule sees all of
them; backends choose the operator to emit.
"""

from __future__ import annotations

from regraft.ir.constants import is_constant
from regraft.ir.dims import known_equal, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import cast, reduce, reshaping
from regraft.ir.rewrite import LocalRule, Rewriter, RuleSet, local_rule
from regraft.ir.types import DType
from regraft.passes.cleanup.facts import is_broadcasting, made_by, only_used_by, same_type

reshape = reshaping.reshape


@local_rule(cast.identity)
def identity(node: Node, rw: Rewriter) -> bool:
    """`identity(x) -> x`."""
    value = node.inputs[0]
    if value is None:
        return False
    rw.replace(node, value)
    return True


@local_rule(reshape)
def reshape_of_reshape(node: Node, rw: Rewriter) -> bool:
    """reshape(reshape(x, s), t) -> reshape(x, t)."""
    inner = made_by(node.inputs[0], reshape)
    if inner is None or inner.inputs[0] is None or node.attrs["shape"] is None:
        return False
    made = rw.builder(node).op(reshape, inner.inputs[0], shape=node.attrs["shape"])
    rw.replace(node, made)
    return True


@local_rule(reshape, reshaping.squeeze, reshaping.unsqueeze)
def reshape_to_own_shape(node: Node, rw: Rewriter) -> bool:
    """reshape(x, shape of x) -> x."""
    x = node.inputs[0]
    if x is None or not same_type(x, node.outputs[0]):
        return False
    rw.replace(node, x)
    return True


@local_rule(reshape)
def reshape_resolved(node: Node, rw: Rewriter) -> bool:
    """`reshape {shape=[…, -1, …]}` -> the sizes that are known."""
    shape, out = node.attrs["shape"], node.outputs[0].shape
    x = node.inputs[0]
    if x is None or x.shape is None or out is None or shape == out:
        return False
    if shape is None or -1 not in shape or not known_equal(product(x.shape), product(out)):
        return False
    rw.replace(node, rw.builder(node).op(reshape, x, shape=out))
    return True


@local_rule(reshaping.squeeze, reshaping.unsqueeze)
def squeeze_as_reshape(node: Node, rw: Rewriter) -> bool:
    """squeeze(x), unsqueeze(x) -> reshape(x, sizes of the result)."""
    x, out = node.inputs[0], node.outputs[0].shape
    if x is None or x.shape is None or out is None:
        return False
    if node.attrs["axes"] is None and node.inputs[1] is not None:
        return False  # the operand says at run time which axes
    if not known_equal(product(x.shape), product(out)):
        return False  # a squeezed size is only assumed to be 1
    rw.replace(node, rw.builder(node).op(reshape, x, shape=out))
    return True


_OF_ONE_ELEMENT = tuple(
    op
    for op in reduce.OPS
    if op.name in {f"reduce_{kind}" for kind in ("sum", "mean", "max", "min", "prod")}
)


@local_rule(*_OF_ONE_ELEMENT)
def reduction_of_one_element(node: Node, rw: Rewriter) -> bool:
    """reduce_sum(x) over axes of size 1 -> reshape(x); mean, max, min and prod likewise."""
    x, axes, out = node.inputs[0], node.attrs["axes"], node.outputs[0].shape
    if x is None or x.shape is None or not axes or out is None:
        return False
    if any(x.shape[axis] != 1 for axis in axes):
        return False
    rw.replace(node, rw.builder(node).op(reshape, x, shape=out))
    return True


def _sink_reshape(node: Node, rw: Rewriter) -> bool:
    """f(reshape(x, s), number) -> reshape(f(x, number), s) where every user reshapes back."""
    out = node.outputs[0]
    if not out._uses:
        return False
    for user, _ in out._uses:
        if not isinstance(user, Node) or user.op is not reshape:
            return False
    inner = next((n for v in node.inputs if (n := made_by(v, reshape)) is not None), None)
    if inner is None or inner.inputs[0] is None or inner.attrs["shape"] is None:
        return False
    x, copy = inner.inputs[0], inner.outputs[0]
    if not only_used_by(copy, node) or copy.shape != out.shape or x.shape is None:
        return False
    if any(user.outputs[0].shape != x.shape for user in out.users):
        return False
    for value in node.inputs:
        if value is not copy and value is not None and not _is_number(value, len(x.shape)):
            return False
    b = rw.builder(node)
    made = b.op(node.op, *(x if v is copy else v for v in node.inputs), **node.attrs)
    rw.replace(node, b.op(reshape, made, shape=inner.attrs["shape"]))
    return True


def _is_number(value: Value, max_rank: int) -> bool:
    shape = value.shape
    return (
        shape is not None
        and len(shape) <= max_rank
        and all(size == 1 for size in shape)
        and is_constant(value)
    )


sink_reshape = LocalRule("sink-reshape", is_broadcasting, _sink_reshape)


@local_rule(cast.cast)
def cast_to_own_type(node: Node, rw: Rewriter) -> bool:
    """cast(x, element type of x) -> x."""
    x = node.inputs[0]
    if x is None or x.dtype is not node.attrs["to"]:
        return False
    rw.replace(node, x)
    return True


@local_rule(cast.cast)
def cast_of_cast(node: Node, rw: Rewriter) -> bool:
    """cast(cast(x, wider type), t) -> cast(x, t) where the first cast loses nothing."""
    inner = made_by(node.inputs[0], cast.cast)
    if inner is None or inner.inputs[0] is None:
        return False
    x = inner.inputs[0]
    source, between, to = x.dtype, inner.attrs["to"], node.attrs["to"]
    if source is None or not is_lossless(source, between) or not _direct(source, between, to):
        return False
    attrs = {name: node.attrs[name] for name in ("to", "saturate", "round_mode")}
    made = x if to is source else rw.builder(node).op(cast.cast, x, **attrs)
    rw.replace(node, made)
    return True


def _direct(source: DType, between: DType, to: DType) -> bool:
    """Returns whether casting `source` to `to` directly does the same for every value.

    Float to integer is undefined out of range where integer to integer wraps; runtimes lack direct
    casts to and from the 8- and 4-bit floats, and strings spell numbers by their type.
    """
    if to.bits < 8 or DType.STRING in (source, between, to) or to.is_complex:
        return False
    if source.is_float or not between.is_float or not to.is_integer:
        return (to.bits > 8 or not to.is_float) and source.bits >= 8
    return is_lossless(source, to)


_MANTISSA = {DType.F64: 53, DType.F32: 24, DType.F16: 11, DType.BF16: 8}


def is_lossless(source: DType, to: DType) -> bool:
    """Returns whether every value of `source` is a value of `to`."""
    if source is to:
        return True
    if source is DType.BOOL:
        return to.is_integer or to in _MANTISSA
    if source.is_integer:
        signed = source.value[0] == "i"
        digits = source.bits - signed
        if to.is_integer:
            to_signed = to.value[0] == "i"
            return digits <= to.bits - to_signed and (to_signed or not signed)
        return bool(digits <= _MANTISSA.get(to, 0))
    if source is DType.F16 or source is DType.BF16:
        return to is DType.F32 or to is DType.F64
    return source is DType.F32 and to is DType.F64


RULES = RuleSet(
    identity,
    reshape_to_own_shape,
    reshape_of_reshape,
    reshape_resolved,
    squeeze_as_reshape,
    reduction_of_one_element,
    sink_reshape,
    cast_to_own_type,
    cast_of_cast,
)
