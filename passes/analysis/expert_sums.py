"""What a layer of experts sums: experts, what they read, and the weight of each for every token.

Four forms, whatever exporter wrote them. *Dense*: experts stacked in one product compute every
token, and a weight per expert and token multiplies what they give (or what they read) before it is
summed. *Sorted*: the rows of a token's experts stand in order of these, each group goes through
its own matrices, and what they give, times a weight, is put back and summed. *Loop*: expert after
expert computes every token, or picks its own and adds what it gives, times a weight, to their
places. *Picked*: for every choice of a token the expert's matrices are gathered. What decides the
weights is not asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from regraft.ir.dims import known_equal, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    gathering,
    reduce,
    repeating,
    reshaping,
    scattering,
    slicing,
)
from regraft.passes.analysis.expert_norms import ResultNorm, behind_norm
from regraft.passes.analysis.expert_shares import (
    ChosenWeights,
    ColumnWeights,
    DenseWeights,
    ExpertSum,
    PlacedWeights,
    is_one,
    is_row_of_table,
    is_zero,
    other_operand,
    root_of,
)
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.analysis.linear_layers import MOVES, moved_axis, only_user
from regraft.passes.analysis.moe_layers import MoeBlock
from regraft.passes.analysis.sorted_experts import sorted_sum
from regraft.passes.cleanup.facts import uniform

_MAX_STEPS = 12


def expert_sum(block: MoeBlock) -> ExpertSum | str:
    """Returns what a layer of experts sums, or why that cannot be read."""
    first = block.experts[0]
    if first.norm is not None or first.depthwise is not None:
        return "a norm or a convolution inside its experts"
    if first.up.owners is not None:
        return sorted_sum(block, first, first.up.owners)
    if first.up.picked is not None:
        return _picked(block, first)
    if first.num_experts > 1:
        return _dense(block, first)
    if first.is_expert:
        return _placed(block)
    return _shared(block)


# -- dense ----------------------------------------------------------------------------------


def _dense(block: MoeBlock, expert: FfnBlock) -> ExpertSum | str:
    value, norm = behind_norm(expert.output)
    axis, weights = -3, None
    for _ in range(_MAX_STEPS):
        node = only_user(value)
        if node is None:
            return "what its experts give is used elsewhere"
        if node.op is arithmetic.mul and weights is None:
            other = other_operand(node, value)
            weights = DenseWeights(other, axis)
            if node.output.shape != value.shape or not is_one(other, -1):
                return f"`{other.name}` is not one weight per expert and token"
        elif node.op in MOVES:
            moved = moved_axis(node, axis)
            if moved is None:
                return f"`{node.op.name}` merges the axis of experts"
            axis = moved
        elif node.op is reduce.reduce_sum:
            found = _summed(block, expert, node, axis, weights)
            return found if isinstance(found, str) else replace(found, norm=norm)
        else:
            return f"`{node.op.name}` between experts and their sum"
        value = node.output
    return "no sum over its experts"


def _summed(
    block: MoeBlock, expert: FfnBlock, node: Node, axis: int, weights: DenseWeights | None
) -> ExpertSum | str:
    x = node.inputs[0]
    axes = node.static("axes")
    if x is None or x.shape is None or not isinstance(axes, tuple):
        return "the axes of its sum are not static"
    if {a % len(x.shape) for a in axes} != {axis % len(x.shape)}:
        return "its sum is not over the experts"
    source, weigh_input = expert.up.input, False
    if weights is None:
        found = _scaled_input(source, expert.num_experts)
        if found is None:
            return "nothing weighs its experts"
        (source, weights), weigh_input = found, True
    elif not _reads_all(source, expert.num_experts):
        return "its experts do not read the same tokens"
    number = product(node.output.shape[:-1]) if node.output.shape else 0
    return ExpertSum(block, node.output, source, number, weights, weigh_input)


def _reads_all(value: Value, num: int) -> bool:
    """Returns whether [1, T, D] or [T, D] is what every expert reads."""
    shape = value.shape
    return shape is not None and all(size == 1 for size in shape[:-2]) and num > 1


def _scaled_input(value: Value, num: int) -> tuple[Value, DenseWeights] | None:
    """Returns tokens and weights of [E, T, D], the tokens once per expert times a weight each."""
    for _ in range(_MAX_STEPS):
        node = value.producer
        if node is None:
            return None
        if node.op is arithmetic.mul:
            break
        if node.op not in MOVES or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    else:
        return None
    for tokens, weights in (node.inputs, node.inputs[::-1]):
        if tokens is None or weights is None:
            continue
        maker = tokens.producer
        while maker is not None and maker.op in MOVES and maker.inputs[0] is not None:
            maker = maker.inputs[0].producer
        if maker is None or maker.op not in (repeating.tile, repeating.expand):
            continue
        source = maker.inputs[0]
        inner = _unmoved(weights)
        if source is None or inner is None or not is_one(weights, -1):
            continue
        for axis in (-1, -2):  # [E, T] of which [E * T, 1] was made, or what that is a transpose of
            if inner.shape is not None and len(inner.shape) == 2 and inner.shape[axis] == num:
                return source, DenseWeights(inner, axis)
    return None


# -- loops ----------------------------------------------------------------------------------


def _placed(block: MoeBlock) -> ExpertSum | str:
    tokens: list[Value] = []
    shares: list[Value] = []
    factors: set[float] = set()
    norms: set[ResultNorm | None] = set()
    before: Value | None = None
    last: Node | None = None
    for expert in block.experts:
        found = _contribution(expert)
        if isinstance(found, str):
            return found
        node, index, share, factor = found
        factors.add(factor)
        norms.add(behind_norm(expert.output)[1])
        if before is not None and node is not last and node.inputs[0] is not before:
            return "what its experts add is not one sum"
        if before is None and not is_zero(node.inputs[0]):
            return "its sum does not begin at zero"
        at_once = node.inputs[2].producer if node.inputs[2] is not None else None
        if at_once is not None and at_once.op is slicing.concat:
            if len(at_once.inputs) != len(block.experts):
                return "its sum is of other things than experts"
        elif node is last:
            return "what its experts add is not one sum"
        tokens.append(index)
        shares.append(share)
        before, last = node.output, node
    if last is None or last.output.shape is None or len(last.output.shape) != 2:
        return "its sum is not one row per token"
    if len(factors) > 1:
        return "its experts are multiplied by several numbers"
    if len(norms) > 1:
        return "its experts have several norms"
    return ExpertSum(
        block, last.output, block.input, last.output.shape[0],
        PlacedWeights(tuple(tokens), tuple(shares), *factors), norm=norms.pop(),
    )  # fmt: skip


def _contribution(expert: FfnBlock) -> tuple[Node, Value, Value, float] | str:
    """Returns the node that adds what an expert gives, the tokens' places, weights and a factor."""
    given = behind_norm(expert.output)[0]
    node = only_user(given)
    if node is None or node.op is not arithmetic.mul:
        return "what its experts give is not multiplied by one weight per token"
    share = other_operand(node, given)
    if not is_one(share, -1):
        return f"`{share.name}` is not one weight per token"
    adds, value, factor = only_user(node.output), node.output, 1.0
    while adds is not None and (adds.op in MOVES or adds.op is arithmetic.mul):
        if adds.op is arithmetic.mul:
            number = uniform(other_operand(adds, value))
            if number is None:
                return "what its experts give is multiplied twice"
            factor *= float(number)
        value = adds.output
        adds = only_user(value)
    index = None if adds is None else adds.inputs[1]
    if adds is not None and adds.op is slicing.concat:
        adds, index = _all_at_once(adds, value)
    elif adds is not None and adds.op is arithmetic.add:
        adds, index = _in_place(adds, value)
    elif adds is not None and adds.attrs.get("reduction") != "add":
        adds = None
    if adds is None or adds.op is not scattering.scatter_nd:
        return "what its experts give is not added to the places of their tokens"
    picked = _picked_index(expert.input)
    if index is None or picked is None or root_of(index) is not root_of(picked):
        return "its experts add to other places than they read"
    return adds, index, share, factor


def _in_place(total: Node, value: Value) -> tuple[Node | None, Value | None]:
    """Returns the node that replaces places of the sum by what they have and a value, and these.

    That is adding, where no place is there twice: a token chooses an expert once.
    """
    picks, puts = other_operand(total, value).producer, only_user(total.output)
    if picks is None or puts is None or puts.op is not scattering.scatter_nd:
        return None, None
    if picks.op not in (gathering.gather, gathering.gather_nd) or picks.inputs[1] is None:
        return None, None
    index = puts.inputs[1]
    if puts.attrs["reduction"] != "none" or picks.inputs[0] is not puts.inputs[0]:
        return None, None
    if index is None or root_of(index) is not root_of(picks.inputs[1]):
        return None, None
    return puts, index


def _all_at_once(rows: Node, value: Value) -> tuple[Node | None, Value | None]:
    """Returns the node that adds what all experts give, and the places of one of them."""
    adds = only_user(rows.output)
    if adds is None or adds.op is not scattering.scatter_nd or adds.inputs[2] is not rows.output:
        return None, None
    places = None if adds.inputs[1] is None else adds.inputs[1].producer
    if adds.attrs["reduction"] != "add" or rows.attrs["axis"] % 2:
        return None, None
    if places is None or places.op is not slicing.concat:
        return None, None
    if places.attrs["axis"] % 2 or len(places.inputs) != len(rows.inputs):
        return None, None
    return adds, places.inputs[rows.inputs.index(value)]


def _picked_index(value: Value) -> Value | None:
    """Returns what picks the tokens that an expert reads."""
    for _ in range(_MAX_STEPS):
        node = value.producer
        if node is None:
            return None
        if node.op is gathering.gather or node.op is gathering.gather_nd:
            return node.inputs[1]
        if node.op not in MOVES or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def _shared(block: MoeBlock) -> ExpertSum | str:
    """Every expert computes every token, one after the other."""
    columns: list[Value] = []
    parts: dict[Value, None] = {}
    for expert in block.experts:
        node = only_user(expert.output)
        if node is None or node.op is not arithmetic.mul:
            return "what its experts give is not multiplied by one weight per token"
        share = other_operand(node, expert.output)
        if not is_one(share, -1) or node.output.shape != expert.output.shape:
            return f"`{share.name}` is not one weight per token"
        columns.append(share)
        parts[node.output] = None
    last = max(parts, key=lambda value: 0 if value.producer is None else value.producer.order)
    value = last
    while (node := only_user(value)) is not None and node.op in (*MOVES, arithmetic.add):
        value = node.output
        if _terms(value, parts) == len(parts):
            shape = value.shape
            if shape is None:
                return "the sizes of its sum are not known"
            return ExpertSum(
                block, value, block.experts[0].up.input, product(shape[:-1]),
                ColumnWeights(tuple(columns)),
            )  # fmt: skip
    return "what its experts give is not one sum"


def _terms(value: Value, parts: Mapping[Value, None]) -> int | None:
    """Returns of how many of `parts` a value is the sum, None when of others too."""
    if value in parts:
        return 1
    if is_zero(value):
        return 0
    node = value.producer
    if node is None or node.op not in (*MOVES, arithmetic.add):
        return None
    counts = [None if each is None else _terms(each, parts) for each in node.inputs]
    if node.op in MOVES:
        counts = counts[:1]
    return None if None in counts else sum(count for count in counts if count is not None)


# -- picked ---------------------------------------------------------------------------------


def _picked(block: MoeBlock, expert: FfnBlock) -> ExpertSum | str:
    (value, norm), share = behind_norm(expert.output), None
    picked = expert.up.picked
    assert picked is not None, "asked of experts whose matrices are gathered"
    for _ in range(_MAX_STEPS):
        node = only_user(value)
        if node is None:
            return "what its experts give is used elsewhere"
        if node.op is arithmetic.mul and share is None:
            share = other_operand(node, value)
        elif node.op is arithmetic.add and share is None:
            if not is_row_of_table(other_operand(node, value), picked):
                return "what is added to its experts is no bias of theirs"
        elif node.op is reduce.reduce_sum and share is not None:
            found = _over_choices(block, expert, node, picked, share)
            return found if isinstance(found, str) else replace(found, norm=norm)
        elif node.op not in MOVES:
            return f"`{node.op.name}` between experts and their sum"
        value = node.output
    return "no sum over its experts"


def _over_choices(
    block: MoeBlock, expert: FfnBlock, node: Node, picked: Value, share: Value
) -> ExpertSum | str:
    x, axes = node.inputs[0], node.static("axes")
    if x is None or x.shape is None or not isinstance(axes, tuple) or len(axes) != 1:
        return "the axis of its sum is not static"
    top_k, axis = x.shape[axes[0]], axes[0] % len(x.shape)
    rest = [size for i, size in enumerate(x.shape[:-1]) if i != axis]
    if not isinstance(top_k, int) or axis == len(x.shape) - 1:
        return "how many experts a token chooses is not static"
    if any(size != 1 for size in x.shape[axis + 1 : -1]):
        return "its sum is not over the choices of a token"
    number = product(rest)
    for value in (picked, share):
        if value.shape is None or not known_equal(product(value.shape), number * top_k):
            return f"`{value.name}` is not one number per choice"
    return ExpertSum(
        block, node.output, block.input, number, ChosenWeights(picked, share, top_k)
    )  # fmt: skip


def _unmoved(value: Value) -> Value | None:
    """Returns what reshapes made a value of."""
    node = value.producer
    while node is not None and node.op is reshaping.reshape and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer
    return value
