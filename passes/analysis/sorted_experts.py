"""Sums of experts whose rows are sorted: grouped products, between a sort and its inverse."""

from __future__ import annotations

from dataclasses import replace

from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, gathering, reduce, scattering, selecting
from regraft.passes.analysis.expert_norms import behind_norm
from regraft.passes.analysis.expert_shares import (
    ChosenWeights,
    ExpertSum,
    SortedWeights,
    is_one,
    is_row_of_table,
    is_zero,
    other_operand,
    root_of,
)
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.analysis.linear_layers import MOVES, only_user
from regraft.passes.analysis.moe_layers import MoeBlock

_MAX_STEPS = 12


def sorted_sum(block: MoeBlock, expert: FfnBlock, owners: Value) -> ExpertSum | str:
    """Returns what a layer of experts sums whose rows are sorted, or why that cannot be read.

    Args:
        block: The layer.
        expert: Its experts, all in one.
        owners: bool[E, rows], whose a row is.
    """
    layers = [each for each in (expert.gate, expert.down) if each is not None]
    if any(each.owners is not owners for each in layers):
        return "its layers do not sort rows alike"
    given, norm = behind_norm(expert.output)
    weighed = _weighed(given)
    if isinstance(weighed, str):
        return weighed
    value, share = weighed
    steps: list[Node] = []
    for _ in range(_MAX_STEPS):
        node = only_user(value)
        if node is None:
            return "what its experts give is used elsewhere"
        if node.op not in _STEPS or value.rank not in (2, 3):
            return f"`{node.op.name}` between experts and their sum"
        steps.append(node)
        if node.op in (reduce.reduce_sum, scattering.scatter_nd):
            found = _over_rows(block, SortedWeights(owners, share, tuple(steps), None))
            return found if isinstance(found, str) else replace(found, norm=norm)
        value = node.output
    return "no sum over its experts"


_STEPS = frozenset({*MOVES, gathering.gather, reduce.reduce_sum, scattering.scatter_nd})


def _weighed(value: Value) -> tuple[Value, Value] | str:
    """Returns the rows times their weights, and the weights."""
    for _ in range(_MAX_STEPS):
        node = only_user(value)
        if node is None:
            return "what its experts give is used elsewhere"
        is_bias = node.op is arithmetic.add and is_row_of_table(other_operand(node, value))
        if node.op is arithmetic.mul:
            share = other_operand(node, value)
            if not is_one(share, -1) or node.output.shape != value.shape:
                return f"`{share.name}` is not one weight per row"
            return node.output, share
        if not is_bias and node.op not in MOVES:
            return f"`{node.op.name}` between experts and their sum"
        value = node.output
    return "nothing weighs its experts"


def _over_rows(block: MoeBlock, found: SortedWeights) -> ExpertSum | str:
    last = found.steps[-1]
    value = last.output
    top_k: int | None = None
    if value.shape is None or len(value.shape) != 2:
        return "its sum is not one row per token"
    if last.op is scattering.scatter_nd:
        if last.attrs["reduction"] != "add" or not is_zero(last.inputs[0]):
            return "its sum does not begin at zero"
    else:
        axes, x = last.static("axes"), last.inputs[0]
        if x is None or x.shape is None or not isinstance(axes, tuple) or len(axes) != 1:
            return "the axis of its sum is not static"
        size = x.shape[axes[0]]
        top_k = size if isinstance(size, int) else None
    chosen = _chosen_of(found.weights, top_k)
    return ExpertSum(
        block, value, block.input, value.shape[0], chosen or replace(found, top_k=top_k)
    )


def _chosen_of(share: Value, top_k: int | None) -> ChosenWeights | None:
    """Returns the choices that rows and their weights were sorted from, or None."""
    node = root_of(share).producer
    if node is None or top_k is None or node.op is not gathering.gather or node.inputs[0] is None:
        return None
    order = None if node.inputs[1] is None else root_of(node.inputs[1])
    maker = None if order is None else order.producer
    if maker is None or maker.op is not selecting.top_k or maker.inputs[0] is None:
        return None
    if order is not maker.outputs[1] or order.shape != maker.inputs[0].shape or order.rank != 1:
        return None
    return ChosenWeights(maker.inputs[0], node.inputs[0], top_k)
