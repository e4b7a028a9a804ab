"""Plans to raise layers of experts to the operator `moe`.

The experts are raised with the weight of each for every token as it is (`scoring=given`);
`raise_routing` then finds what decides the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import known_equal, product
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    fill,
    linalg,
    moe,
    reduce,
    reshaping,
    scattering,
    selecting,
    slicing,
)
from regraft.ir.rewrite import Rewriter
from regraft.ir.types import DType
from regraft.passes.analysis.expert_shares import (
    ChosenWeights,
    ColumnWeights,
    DenseWeights,
    ExpertSum,
    PlacedWeights,
    SortedWeights,
)
from regraft.passes.analysis.expert_sums import expert_sum
from regraft.passes.analysis.linear_layers import MOVES
from regraft.passes.analysis.moe_layers import MoeBlock
from regraft.passes.fusion.expert_weights import ExpertWeights, expert_weights
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.fusion.prove import Prover
from regraft.passes.protocol import Skip

_MAX_ROUTING = 4000
"""Most values between what experts weigh and the router's scores."""


def plan_experts(found: Iterable[MoeBlock], plan: Plan, prover: Prover) -> None:
    """Adds every layer of experts that the operator stands for, proved on generated inputs."""
    for block in found:
        if not block.experts:
            continue
        name = str(block.experts[-1].output.name)
        reading = _read(block)
        if not isinstance(reading, str):
            refuted = _refuted(*reading, prover)
            if not refuted:
                total, weights = reading
                node = total.output.producer
                assert node is not None, "a sum is computed"
                plan.add(node, "raise-experts", _raised(total, weights))
                continue
            reading = refuted
        plan.skipped.append(Skip(name, f"experts: {reading}"))


def _read(block: MoeBlock) -> tuple[ExpertSum, ExpertWeights] | str:
    total = expert_sum(block)
    if isinstance(total, str):
        return total
    weights = expert_weights(total)
    if isinstance(weights, str):
        return weights
    shape = total.tokens.shape
    if shape is None or not known_equal(product(shape[:-1]), total.num_tokens):
        return "what its experts read is not one row per token"
    if total.output.shape is None or total.output.dtype is not total.tokens.dtype:
        return "its sum is of another type than what its experts read"
    return total, weights


def _raised(total: ExpertSum, weights: ExpertWeights) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, build(total, weights, rw.builder(node)))

    return apply


def _refuted(total: ExpertSum, weights: ExpertWeights, prover: Prover) -> str:
    """Returns how the raised form differs, or ""."""
    graph = total.output.owner
    assert graph is not None, "the place is there"
    scratch = Graph(graph.scope)
    made = build(total, weights, Builder(scratch))
    ends: list[Value] | None = None
    match total.weights:
        # the tokens of every expert follow from the choice: that is what can be drawn
        case PlacedWeights(tokens, shares):
            ends = _ends(total, [*tokens, *shares])
        case SortedWeights(owners, share, steps):
            ends = _ends(total, [owners, share, *_read_by(steps)])
        case ChosenWeights(experts, share) if total.block.experts[0].up.owners is not None:
            ends = _ends(total, [experts, share])
        case _:
            pass
    reason = prover.refute(total.output, made, scratch, ends)
    for node in reversed(scratch):
        scratch.erase(node)
    name = str(total.output.name)
    if total.block.experts[0].up.owners is not None and name in prover.unproved:
        return f"not proved: {prover.unproved.pop(name)}"  # only the proof says whose a bias is
    return reason


def _read_by(steps: Iterable[Node]) -> list[Value]:
    return [value for node in steps for value in node.inputs[1:] if value is not None]


def _ends(total: ExpertSum, queue: list[Value]) -> list[Value]:
    """Returns the tokens, and the scores that the choice follows from."""
    ends = {_root(total.tokens): None}
    seen: set[Value] = set()
    while queue and len(seen) < _MAX_ROUTING:
        value = queue.pop()
        node = value.producer
        if value in seen or value in ends or node is None:
            continue
        seen.add(value)
        if is_constant(value):
            continue
        if node.op in (linalg.matmul, linalg.gemm):
            ends[value] = None
            continue
        queue += [v for v in node.inputs if v is not None]
    return list(ends)


def _root(value: Value) -> Value:
    node = value.producer
    while node is not None and node.op in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer
    return value


def build(total: ExpertSum, weights: ExpertWeights, b: Builder) -> Value:
    """Builds the operator with given weights; returns what equals the weighted sum."""
    num, channels = total.num_tokens, weights.channels
    x = b.op(reshaping.reshape, total.tokens, shape=(num, channels))
    count = weights.num_experts
    match total.weights:
        case DenseWeights():
            shares, top_k = _turned(b, total.weights, total, count)
        case ChosenWeights():
            shares, top_k = _of_choices(b, total.weights, total, count), total.weights.top_k
        case ColumnWeights(columns):
            flat = [b.op(reshaping.reshape, each, shape=(num, 1)) for each in columns]
            shares, top_k = b.op(slicing.concat, *flat, axis=1), count
        case PlacedWeights():
            shares = _of_places(b, total.weights, total)
            known = total.block.top_k
            top_k = known if isinstance(known, int) else count
        case SortedWeights():
            shares, top_k = _of_rows(b, total.weights, count), total.weights.top_k or count
    norm = total.norm
    operands = weights.write(b, None if norm is None else norm.before)
    made = b.op(
        moe.moe, x, shares, *operands, top_k=min(top_k, count), scoring="given",
        activation=weights.activation, weigh_input=total.weigh_input,
        norm_epsilon=0.0 if norm is None else norm.epsilon, **weights.bounds,
    )  # fmt: skip
    if norm is not None and norm.behind is not None:
        made = b.op(arithmetic.mul, made, norm.behind)  # the same for all experts
    shape = total.output.shape
    assert shape is not None, "checked before"
    return made if made.shape == shape else b.op(reshaping.reshape, made, shape=shape)


def _turned(b: Builder, given: DenseWeights, total: ExpertSum, count: int) -> tuple[Value, int]:
    """Returns weights [T, E] and how many of a token are not zero at most."""
    value = given.value
    rank = value.rank or 0
    order = [axis for axis in range(rank) if axis != given.axis + rank]
    turned = b.op(reshaping.transpose, value, perm=(*order, given.axis + rank))
    return (
        b.op(reshaping.reshape, turned, shape=(total.num_tokens, count)),
        _choices(value) or count,
    )


def _choices(value: Value) -> int | None:
    """Returns how many choices of a token were summed to its weights, None when it is not that."""
    node = _root(value).producer
    if node is None or node.op is not reduce.reduce_sum or node.inputs[0] is None:
        return None
    x, axes = node.inputs[0], node.static("axes")
    maker = x.producer
    if maker is None or maker.op is not arithmetic.mul or x.shape is None:
        return None
    if not isinstance(axes, tuple) or len(axes) != 1:
        return None
    size = x.shape[axes[0]]
    return size if isinstance(size, int) and _selects(maker.inputs) else None


def _selects(values: Sequence[Value | None]) -> bool:
    """Returns whether one factor is 1 at one expert of each choice and 0 elsewhere."""
    for value in values:
        node = None if value is None else _root(value).producer
        if node is not None and node.op.name in ("equal", "one_hot"):
            return True
    return False


def _of_choices(b: Builder, given: ChosenWeights, total: ExpertSum, count: int) -> Value:
    shape = (total.num_tokens, given.top_k)
    chosen = b.op(reshaping.reshape, given.experts, shape=shape)
    shares = b.op(reshaping.reshape, given.weights, shape=(*shape, 1))
    on_off = b.constant([0, 1], shares.dtype)
    selected = b.op(selecting.one_hot, chosen, None, on_off, depth=count, axis=-1)
    return b.op(
        reduce.reduce_sum, b.op(arithmetic.mul, selected, shares), axes=(1,), keepdims=False
    )


def _of_rows(b: Builder, given: SortedWeights, count: int) -> Value:
    """Returns weights [T, E]: what becomes of the rows becomes of their weights, too."""
    dtype = given.weights.dtype
    owner = b.op(cast.cast, b.op(reshaping.transpose, given.owners, perm=(1, 0)), to=dtype)
    shares = b.op(arithmetic.mul, owner, given.weights)
    for step in given.steps:
        shape = step.output.shape
        assert shape is not None, "its sizes were read"
        sizes = (*shape[:-1], count)
        if step.op is scattering.scatter_nd:
            zero = b.op(
                fill.constant_of_shape, None, shape=sizes,
                value=np.zeros(1, (dtype or DType.F32).numpy),
            )  # fmt: skip
            shares = b.op(scattering.scatter_nd, zero, step.inputs[1], shares, reduction="add")
        elif step.op is reshaping.reshape:
            shares = b.op(reshaping.reshape, shares, shape=sizes)
        else:
            shares = b.op(step.op, shares, *step.inputs[1:], **step.attrs)
    return shares


def _of_places(b: Builder, given: PlacedWeights, total: ExpertSum) -> Value:
    dtype = given.weights[0].dtype or DType.F32
    zero = b.op(
        fill.constant_of_shape, None, shape=(total.num_tokens, 1), value=np.zeros(1, dtype.numpy)
    )
    columns = []
    for index, share in zip(given.tokens, given.weights, strict=True):
        rows = 0 if index.shape is None else product(index.shape)
        places = b.op(reshaping.reshape, index, shape=(rows, 1))
        column = b.op(reshaping.reshape, share, shape=(rows, 1))
        columns.append(b.op(scattering.scatter_nd, zero, places, column, reduction="add"))
    shares = b.op(slicing.concat, *columns, axis=1)
    if given.factor == 1:
        return shares
    return b.op(arithmetic.mul, shares, b.constant(given.factor, dtype))
