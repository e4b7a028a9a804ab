"""The pass `fold-norms`: batch normalization and scales vanish into neighbouring weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.derive import DerivedWeight
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, conv, linalg, norm
from regraft.ir.rewrite import Reject, Rewriter, RuleSet, local_rule, rewrite
from regraft.ir.rewrite.explain import label
from regraft.ir.steps import Literal, MatMul, Mul, Reshape, Tree
from regraft.ir.types import static_shape
from regraft.passes.cleanup.affine import AFFINE_OPS, Affine, affine_of, role_of
from regraft.passes.cleanup.affine_folds import (
    PRODUCERS,
    Folded,
    channel_axis,
    column,
    constant,
    fits,
    fold_into,
    keeps_digits,
    largest,
    rebuild,
)
from regraft.passes.cleanup.facts import only_used_by
from regraft.passes.cleanup.numbers import ONE, ZERO, Numbers, shaped, wide_tree
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """Consecutive affine nodes, each the only user of the one before.

    Args:
        source: What the first one maps.
        affine: All of them composed.
        nodes: From the first to the last.
    """

    source: Value
    affine: Affine
    nodes: tuple[Node, ...]


def _chain(last: Node) -> _Chain | Reject | None:
    """Returns the longest chain of affine nodes that ends at `last`."""
    found = affine_of(last)
    if found is None or isinstance(found, Reject):
        return found
    source, affine = found
    nodes = [last]
    while True:
        before = source.producer
        if before is None or not only_used_by(source, nodes[0]):
            break
        found = affine_of(before)
        if found is None or isinstance(found, Reject):
            break
        composed = found[1].then(affine)
        if composed is None:
            break
        source, affine = found[0], composed
        nodes.insert(0, before)
    return _Chain(source, affine, tuple(nodes))


def _continues(node: Node) -> bool:
    """Returns whether the chain goes on below: it is folded at its last node."""
    out = node.outputs[0]
    users = out.users
    if len(users) != 1 or out.is_output:
        return False
    found = affine_of(users[0])
    return isinstance(found, tuple) and found[0] is out and _chain_contains(users[0], node)


def _chain_contains(last: Node, node: Node) -> bool:
    chain = _chain(last)
    return isinstance(chain, _Chain) and node in chain.nodes


def _constants(chain: _Chain) -> list[Value | None]:
    return [value for node in chain.nodes for value in node.inputs]


@local_rule(*AFFINE_OPS)
def fold_into_producer(node: Node, rw: Rewriter) -> bool | Reject:
    """batch_norm(conv(x, w, b)) -> conv(x, w', b'), also for scales and shifts, gemm and matmul."""
    chain = _chain(node)
    if not isinstance(chain, _Chain):
        return chain or False
    producer = chain.source.producer
    if producer is None or producer.op not in PRODUCERS or chain.source.index:
        return False
    if _continues(node):
        return False
    if not only_used_by(chain.source, chain.nodes[0]):
        return Reject("the producer's result is used elsewhere", chain.source)
    if producer.op in (linalg.matmul, linalg.gemm) and not _belongs(producer, chain):
        return False
    folded = fold_into(producer, chain.affine)
    if isinstance(folded, Reject):
        return folded
    x = producer.inputs[0]
    if x is None:
        return False
    role = role_of(*producer.inputs[1:], *_constants(chain))
    rw.replace(node, rebuild(rw.builder(node), producer, x, folded, role))
    return True


@local_rule(conv.conv)
def fold_into_consumer(node: Node, rw: Rewriter) -> bool | Reject:
    """conv(batch_norm(x), w, b) -> conv(x, w', b') without padding (it pads unshifted zeros)."""
    x, w = node.inputs[0], node.inputs[1]
    before = None if x is None else x.producer
    if x is None or w is None or before is None or before.op is not norm.batch_norm:
        return False
    found = affine_of(before)
    if not isinstance(found, tuple):
        return found or False
    source, affine = found
    if not only_used_by(x, node):
        return Reject("the normalized value is used elsewhere", x)
    padded = any(node.attrs["pads"]) or node.attrs["auto_pad"] != "none"
    if padded and not affine.shift.are_zeros:
        return Reject("the convolution pads with zeros, which the shift would move", node)
    identity = fold_into(node, Affine(ONE, ZERO, None))
    if isinstance(identity, Reject):
        return identity
    folded = _scale_inputs(node, w, identity, affine)
    if not fits(folded, w):
        return Reject(f"the folded weight leaves the range of {w.dtype}", w)
    role = role_of(*node.inputs[1:], *before.inputs[1:])
    rw.replace(node, rebuild(rw.builder(node), node, source, folded, role))
    return True


def _belongs(product: Node, chain: _Chain) -> bool:
    """Returns whether a chain is part of a linear layer: its normalization, or a gemm's bias.

    Other scales keep a meaning of their own: the 1 / sqrt(d) of attention scores stands behind the
    projection of the queries in some models.
    """
    if any(node.op is norm.batch_norm for node in chain.nodes):
        return True
    return product.op is linalg.gemm and chain.affine.scale.are_ones


def _scale_inputs(node: Node, w: Value, plain: Folded, affine: Affine) -> Folded:
    """W (s x + t) + b = (W s) x + (b + sum of W t over input channels and taps)."""
    groups, shape = node.attrs["groups"], static_shape(w.type)
    array = constant_of(w, 1 << 62)
    if shape is None or array is None:
        raise AssertionError("the weight was constant before")
    num_out, num_in, *taps = shape
    grouped = shaped(wide_tree(w), (groups, num_out // groups, *shape[1:]))
    scale = affine.scale.spread(num_in * groups)
    factor = shaped(scale.tree(), (groups, 1, num_in, *(1,) * len(taps)))
    bias = plain.bias
    if not affine.shift.are_zeros:
        shift = affine.shift.spread(num_in * groups)
        added = _taps_times(array, shift, wide_tree(w), groups)
        bias = added if bias is None else bias + added
    return Folded(Reshape(Mul(grouped, factor), shape), largest(scale.array), bias, {})


def _taps_times(array: Array, shift: Numbers, w: Tree, groups: int) -> Numbers:
    """Returns the sum of W t over input channels and taps: the bias that a shifted input adds."""
    num_out, num_in, *taps = array.shape
    num_taps = math.prod(taps)
    # (sum over taps of W) t, group by group
    parts = shaped(w, (groups, num_out // groups, num_in, num_taps))
    summed = shaped(
        MatMul(parts, Literal.of(np.ones((num_taps, 1)))), (groups, num_out // groups, num_in)
    )
    product = MatMul(summed, shaped(shift.tree(), (groups, num_in, 1)))
    tree = shaped(product, (num_out,))
    return Numbers(DerivedWeight(tree).numpy(), tree)


@local_rule(*(op for op in AFFINE_OPS if op is not norm.batch_norm))
def join_constants(node: Node, rw: Rewriter) -> bool | Reject:
    """((x * a) * b) + c) - d -> x * (a b) + (c - d): at most one product and one sum."""
    chain = _chain(node)
    if not isinstance(chain, _Chain):
        return chain or False
    affine, old = chain.affine, chain.nodes
    scales, shifts = not affine.scale.are_ones, not affine.shift.are_zeros
    if len(old) <= scales + shifts or _continues(node):
        return False
    dtype = chain.source.dtype
    if dtype is None or not affine.is_finite:
        return False
    if not keeps_digits(affine.scale.array, dtype) or not keeps_digits(affine.shift.array, dtype):
        return Reject(f"the joined constants leave the range of {dtype}", node)
    b, role, value = rw.builder(node), role_of(*_constants(chain)), chain.source
    rank = value.rank or 0
    name = node.outputs[0].name or node.op.name
    for op, numbers, needed in (
        (arithmetic.mul, affine.scale, scales),
        (arithmetic.add, affine.shift, shifts),
    ):
        if needed:
            tree = column(numbers, rank - (affine.axis or 0), 0)
            value = b.op(op, value, constant(b, tree, dtype, f"{name}.{op.name}", role))
    rw.replace(node, value)
    return True


RULES = RuleSet(fold_into_producer, fold_into_consumer, join_constants)


@dataclass(frozen=True, slots=True)
class FoldNorms:
    """Folds batch normalization and constant scales and shifts into neighbouring weights.

    ## What it does
    `batch_norm`, and products, quotients, sums and differences with constants along the channel
    axis, vanish into the weight and bias of the `conv` or `conv_transpose` whose result they map;
    into a `gemm` or `matmul` only together with a `batch_norm`, so that the scale of attention
    scores stays visible. A `batch_norm` also vanishes into the `conv` that follows it. What has no
    such neighbour is joined into one product and one sum.

    ## When it applies
    The weight is constant, floating point, and used once; the mapped value has no other user.
    Into a following convolution only where it does not pad, or where nothing is shifted.

    ## Example
    ```
    %1 = conv(%x, %w)
    %y = batch_norm(%1, %scale, %bias, %mean, %var)     // becomes conv(%x, %w.folded, %w.bias)
    ```

    ## Exactness
    Exact in real arithmetic: constants are computed in f64 and rounded once to the weight's type.
    A fold that would leave that type's range is not made. Folded parameters are derived weights:
    they name the tensors of the checkpoint they follow from, position by position.

    ## References
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, section 3.2.
    """

    name: ClassVar[str] = "fold-norms"
    contract: ClassVar[Contract] = Exact()

    def rules(self) -> RuleSet:
        """Returns the rules in the order in which they are tried."""
        return RULES

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Folds to a fixpoint; every batch_norm that stays is reported with the reason."""
        explain = ctx.explain if ctx.explain in {rule.name for rule in RULES.compile()} else None
        stats = rewrite(module, RULES, explain=explain, observer=ctx.observer)
        ctx.explanations.extend(map(str, stats.near_misses))
        left = [n for n in module.graph.walk() if n.op is norm.batch_norm]
        skips = tuple(Skip(label(node), _reason(node)) for node in left)
        return PassResult(bool(stats.counts), dict(stats.counts), skips)


def _reason(node: Node) -> str:
    found = affine_of(node)
    if isinstance(found, Reject):
        return found.reason
    x = node.inputs[0]
    producer = None if x is None else x.producer
    if x is None or found is None or producer is None or producer.op not in PRODUCERS:
        return "no convolution or matrix product comes before it"
    if not only_used_by(x, node):
        return "the result it normalizes is used elsewhere"
    folded = fold_into(producer, found[1])
    if isinstance(folded, Reject):
        return folded.reason
    return f"its channels lie on axis {channel_axis(producer)} of {label(producer)}"
