"""Constant folding: by evaluation, by recorded steps for parameters, and of known sizes.

A parameter that is moved, cast, or in arithmetic with other constants becomes a derived weight, so
that its origin in the checkpoint stays known; other operators of parameters are folded by value,
and the result names what it was made from. Where parameters may be trained yet, only rearrangements
of them are folded: what is computed from a parameter changes with it. A result is folded when it
takes no more bytes than its operands, or than `max_fold_bytes`: what a small recipe expands to, or
an 8-bit weight widened, stays computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import INLINE_BYTES, Builder
from regraft.ir.constants import constant_of, literal, opaque, weight
from regraft.ir.derive import DerivedWeight, source_names
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import quant
from regraft.ir.ops.cast import cast
from regraft.ir.opspec import AttrKind, OpSpec, Trait
from regraft.ir.rewrite import LocalRule, Reject, Rewriter, RuleSet, rewrite
from regraft.ir.types import DType, TensorType, static_shape
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup.weight_steps import STEP_OPS, is_rearrangement, steps_of


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """Limits of folding.

    Args:
        max_fold_bytes: A folded result takes at most this, or as much as its operands.
        fold_params: Whether parameters and buffers are folded too.
        fold_trained: Whether what is computed from parameters that may be trained yet is folded,
            which cuts it off from them, with the movement that it computes with.
    """

    max_fold_bytes: int
    fold_params: bool
    fold_trained: bool = False


def folding_rules(options: FoldOptions) -> RuleSet:
    """Returns the folding rules under these limits."""
    return RuleSet(
        LocalRule("fold-content", _has_content, _fold_content),
        LocalRule("fold-steps", lambda op: op in STEP_OPS, _under(_fold_steps, options)),
        LocalRule("fold-constants", _is_foldable, _under(_fold_constants, options)),
    )


def fold_trained(module: Module) -> None:
    """Folds what is computed from parameters that may be trained yet, into parameters."""
    if module.weights.trainable:
        rewrite(module, folding_rules(FoldOptions(1 << 20, fold_params=True, fold_trained=True)))


_Fold = Callable[[Node, Rewriter, FoldOptions], "bool | Reject"]


def _under(fold: _Fold, options: FoldOptions) -> Callable[[Node, Rewriter], bool | Reject]:
    return lambda node, rw: fold(node, rw, options)


def _is_foldable(op: OpSpec) -> bool:
    return (
        Trait.PURE in op.traits
        and Trait.CONSTANT not in op.traits
        and op.eval is not None
        and not op.num_bodies
        and op is not opaque
        # a dequantized weight would lose its quantization
        and op not in quant.OPS
    )


# -- known sizes --------------------------------------------------------------------------------


def _has_content(op: OpSpec) -> bool:
    return op.content is not None and Trait.CONSTANT not in op.traits and Trait.PURE in op.traits


def _fold_content(node: Node, rw: Rewriter) -> bool:
    """An integer result whose content is known -> literal."""
    for value in node.outputs:
        if value.content is None:
            return False
    arrays = [_content_array(value) for value in node.outputs]
    if any(array is None for array in arrays):
        return False
    b = rw.builder(node)
    rw.replace(node, *(b.op(literal, value=array) for array in arrays))
    return True


def _content_array(value: Value) -> np.ndarray[Any, Any] | None:
    """Returns the array of an integer or bool value whose elements are known numbers."""
    dtype, content, shape = value.dtype, value.content, value.shape
    if dtype is None or not (dtype.is_integer or dtype is DType.BOOL) or shape is None:
        return None
    if isinstance(content, Dim) or content is None:
        return None
    if isinstance(content, tuple):
        if len(shape) != 1 or any(isinstance(item, Dim) for item in content):
            return None
    elif shape:
        return None
    return np.array(content, np.int64).astype(dtype.numpy)


# -- evaluation ---------------------------------------------------------------------------------


def _fold_constants(node: Node, rw: Rewriter, options: FoldOptions) -> bool | Reject:
    """A pure operator of constants -> its value."""
    for value in node._inputs:
        if value is not None and not _is_stored(value):
            return False
    if _has_symbols(node):
        return False
    role = _role(node)
    kept = _kept(node, role, options)
    if kept is not None:
        return kept
    limit = max(options.max_fold_bytes, _operand_bytes(node))
    size = _result_bytes(node)
    if size is not None and size > limit:
        return Reject(f"the result takes {size} bytes, more than {limit}", node)
    operands = [constant_of(value, 1 << 62) for value in node.inputs]
    try:
        # an evaluation gives all results, the node may have the first ones alone
        arrays = evaluate_node(node, operands, {})[: len(node.outputs)]
    except (LookupError, ValueError) as error:
        # it fails wherever it runs, which in a branch may be nowhere: the runtime decides
        return Reject(f"it fails on its operands: {error}", node)
    if not all(isinstance(array, np.ndarray) for array in arrays):
        return False  # a sequence or an absent optional: there is no constant of such a type
    if sum(array.nbytes for array in arrays) > limit:
        return Reject(f"the result takes more than {limit} bytes", node)
    for value, array in zip(node.outputs, arrays, strict=True):
        if value.dtype is not None and array.dtype != value.dtype.numpy:
            return Reject(f"its value is {array.dtype}, its type says {value.dtype}", node)
    b = rw.builder(node)
    made_from = () if role is Role.CONST else _sources(node)
    values = [
        _constant(b, array, old, role, made_from)
        for array, old in zip(arrays, node.outputs, strict=True)
    ]
    rw.replace(node, *values)
    return True


def _is_stored(value: Value) -> bool:
    producer = value.producer
    return producer is not None and (producer.op is literal or producer.op is weight)


def _has_symbols(node: Node) -> bool:
    for attr in node.op.all_attrs.values():
        if attr.kind is AttrKind.DIMS or attr.kind is AttrKind.DIM:
            value = node.attrs[attr.name]
            if isinstance(value, Dim):
                return True
            if isinstance(value, tuple) and any(isinstance(item, Dim) for item in value):
                return True
    return False


def _role(node: Node) -> Role:
    """Returns the role of the result: a function of a parameter is one."""
    found = Role.CONST
    for value in node.inputs:
        producer = None if value is None else value.producer
        if producer is not None and producer.op is weight and producer.graph is not None:
            role = producer.graph.scope.weights.role(producer.attrs["name"])
            if role is Role.PARAM:
                return role
            found = role if role is Role.BUFFER else found
    return found


def _kept(node: Node, role: Role, options: FoldOptions, *, is_moved: bool = False) -> Reject | None:
    """Returns why an operator of constants stays, None when it may be folded.

    Args:
        node: The operator.
        role: Of its result.
        options: What is folded.
        is_moved: Whether it rearranges whole parameters.
    """
    if role is not Role.CONST and not options.fold_params:
        return Reject("an operand is a parameter, and fold-params is off", node)
    if role is Role.PARAM and is_trained(node) and not is_moved:
        if not options.fold_trained:
            return Reject("it computes with a parameter that may be trained yet", node)
        if Trait.DATA_MOVEMENT in node.op.traits and not _is_computed_with(node):
            return Reject("it takes a part of a parameter that may be trained yet", node)
    if _widens_codes(node):
        return Reject("a weight stored in 8 bits or fewer would be stored wider", node)
    return None


def _is_computed_with(node: Node) -> bool:
    """Returns whether constants alone are computed from what a node moves: a parametrization."""
    for value in node.outputs:
        for user, _ in value.uses:
            if not isinstance(user, Node) or not _is_foldable(user.op):
                continue
            if not all(item is None or _is_settled(item) for item in user.inputs):
                continue
            if Trait.DATA_MOVEMENT not in user.op.traits or _is_computed_with(user):
                return True
    return False


def _is_settled(value: Value) -> bool:
    """Returns whether a value follows from constants alone."""
    node = value.producer
    if node is None:
        return False
    return _is_stored(value) or (
        _is_foldable(node.op) and all(item is None or _is_settled(item) for item in node.inputs)
    )


def is_trained(node: Node) -> bool:
    """Returns whether parameters of the node's module may be trained yet."""
    return node.graph is not None and node.graph.scope.weights.trainable


def _widens_codes(node: Node) -> bool:
    """Returns whether the node casts a quantized weight: exporters spell it cast, then mul."""
    x = node.inputs[0] if node.op is cast else None
    if x is None or x.dtype is None or not (x.dtype.is_integer and x.dtype.bits <= 8):
        return False
    size = _nbytes(x)
    return size is not None and size > INLINE_BYTES and node.attrs["to"].bits > x.dtype.bits


def _operand_bytes(node: Node) -> int:
    return sum(_nbytes(value) or 0 for value in node.inputs if value is not None)


def _result_bytes(node: Node) -> int | None:
    sizes = [_nbytes(value) for value in node.outputs]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _nbytes(value: Value) -> int | None:
    shape = static_shape(value.type)
    if shape is None or not isinstance(value.type, TensorType) or value.type.dtype is None:
        return None
    return value.type.dtype.nbytes(int(np.prod(shape, dtype=np.int64)))


def _sources(node: Node) -> tuple[str, ...]:
    """Returns the checkpoint tensors that the operands follow from."""
    names: dict[str, None] = {}
    for value in node.inputs:
        producer = None if value is None else value.producer
        if producer is not None and producer.op is weight and producer.graph is not None:
            store = producer.graph.scope.weights
            name = store.resolve(producer.attrs["name"])
            if store.role(name) is not Role.CONST:
                names |= dict.fromkeys(source_names(name, store[name]))
    return tuple(names)


def _constant(
    b: Builder, array: np.ndarray[Any, Any], old: Value, role: Role, made_from: tuple[str, ...]
) -> Value:
    if role is Role.CONST:
        return b.constant(array, name=old.name)
    return b.weight(old.name or "folded", ArrayWeight(array, made_from), role)


# -- parameters in steps -----------------------------------------------------------------------


def _fold_steps(node: Node, rw: Rewriter, options: FoldOptions) -> bool | Reject:
    """A parameter moved, cast, or in arithmetic with others -> a derived weight."""
    for value in node._inputs:
        if value is not None and not _is_stored(value):
            return False
    role = _role(node)
    if role is Role.CONST:
        return False  # folded by value
    kept = _kept(node, role, options, is_moved=is_trained(node) and is_rearrangement(node))
    if kept is not None:
        return kept
    steps = steps_of(node)
    if steps is None:
        return False
    size, limit = _result_bytes(node), max(options.max_fold_bytes, _operand_bytes(node))
    if size is None or size > limit:
        return Reject(f"the result takes {size} bytes, more than {limit}", node)
    b = rw.builder(node)
    name = f"{_first_weight(node)}.{node.op.name}"
    rw.replace(node, *(b.weight(name, DerivedWeight(tree), role) for tree in steps))
    return True


def _first_weight(node: Node) -> str:
    producers = [None if value is None else value.producer for value in node.inputs]
    names = [p.attrs["name"] for p in producers if p is not None and p.op is weight]
    return str(names[0])
