"""Layers of experts: feed-forward blocks that read picked tokens or hold stacked weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    conv,
    gathering,
    linalg,
    moe,
    repeating,
    selecting,
    slicing,
    softmax,
)
from regraft.passes.analysis.expert_norms import behind_norm
from regraft.passes.analysis.ffn import FfnBlock, picking_node
from regraft.passes.analysis.linear_layers import MOVES, IsConstant, Linear

_MAX_ROUTING = 96
"""Most nodes between a router and where its choice is used."""


@dataclass(frozen=True, slots=True, eq=False)
class MoeBlock:
    """A layer of experts.

    Args:
        input: The tokens that are routed.
        router: The layer that scores the experts, None when it was not found.
        num_experts: How many experts there are.
        top_k: How many are chosen per token, None when it was not found.
        experts: The experts, one block per expert or one with stacked weights; empty when the
            layer is one canonical operator.
        nodes: What computes the experts.
    """

    input: Value
    router: Linear | None
    num_experts: DimLike
    top_k: DimLike | None
    experts: tuple[FfnBlock, ...]
    nodes: tuple[Node, ...]

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""
        first = self.experts[0] if self.experts else None
        return {
            "input": self.input.name,
            "router": None if self.router is None else self.router.weight.name,
            "experts": self.num_experts if isinstance(self.num_experts, int) else None,
            "top_k": self.top_k if isinstance(self.top_k, int) else None,
            "activation": None if first is None else first.activation,
            "gated": None if first is None else first.gate is not None,
            "canonical": not self.experts,
        }


def moe_layers(
    graph: Graph,
    blocks: Sequence[FfnBlock],
    layers: Mapping[Value, Linear],
    is_constant: IsConstant,
) -> tuple[list[MoeBlock], list[FfnBlock]]:
    """Returns the layers of experts of one graph, and the blocks that are no expert.

    Args:
        graph: The graph.
        blocks: Its feed-forward blocks.
        layers: Its linear layers by result.
        is_constant: Tells constants.
    """
    dense: list[FfnBlock] = []
    groups: dict[object, list[FfnBlock]] = {}
    shares = _by_share(blocks, is_constant)
    for block in blocks:
        if block.is_expert:
            groups.setdefault(_tokens(block.input, is_constant), []).append(block)
        elif block.num_experts > 1:
            groups.setdefault(block.output, []).append(block)
        elif block in shares:
            groups.setdefault(shares[block], []).append(block)
        else:
            dense.append(block)
    found = [_layer(experts, layers, is_constant) for experts in groups.values()]
    found += [_canonical(node, layers) for node in graph if node.op is moe.moe]
    found.sort(key=lambda block: block.nodes[-1].order)
    return found, dense


def _by_share(
    blocks: Sequence[FfnBlock], is_constant: IsConstant
) -> dict[FfnBlock, tuple[Value, Value]]:
    """Returns the blocks that compute every token and are weighed by a share of a choice.

    Their key is what they read and the tensor that holds the shares of all experts, or what was
    chosen where every share follows from it.
    """
    found: dict[tuple[Value, Value], list[FfnBlock]] = {}
    compared: dict[tuple[Value, Value], list[FfnBlock]] = {}
    for block in blocks:
        shares = _shares(block)
        if shares is not None and _choice(block, is_constant) is not None:
            found.setdefault((block.input, shares), []).append(block)
        elif shares is None and (chosen := _compared_choice(block, is_constant)) is not None:
            compared.setdefault((block.input, chosen), []).append(block)
    found = {
        key: group for key, group in found.items()
        if len(group) > 1 and len(group) in (key[1].shape or ())
    }  # fmt: skip
    found |= {key: group for key, group in compared.items() if len(group) > 1}
    return {block: key for key, group in found.items() for block in group}


def _compared_choice(block: FfnBlock, is_constant: IsConstant) -> Value | None:
    """Returns the chosen experts that decide what a block's result is multiplied by, or None.

    They are compared with the number of the expert: no layer lies between.
    """
    users = block.output.users
    if len(users) != 1 or users[0].op is not arithmetic.mul:
        return None
    queue = [value for value in users[0].inputs if value is not block.output]
    if queue[0] is None or queue[0].shape is None or queue[0].shape[-1:] != (1,):
        return None
    seen: set[Value] = set()
    while queue and len(seen) < _MAX_ROUTING:
        value = queue.pop(0)
        node = None if value is None else value.producer
        if value is None or node is None or value in seen or is_constant(value):
            continue
        seen.add(value)
        if node.op is selecting.top_k:
            return node.outputs[1]
        if node.op is selecting.arg_max:
            return node.output
        if node.op not in _LAYERS:
            queue += node.inputs
    return None


_LAYERS = frozenset({linalg.matmul, linalg.gemm, conv.conv})


def _shares(block: FfnBlock) -> Value | None:
    """Returns the tensor of which a block's result is multiplied by one entry per token."""
    users = block.output.users
    if len(users) != 1 or users[0].op is not arithmetic.mul:
        return None
    other = next((v for v in users[0].inputs if v is not block.output), None)
    if other is None or other.shape is None or 1 not in other.shape:
        return None
    while (node := other.producer) is not None and node.op in MOVES and node.inputs[0] is not None:
        other = node.inputs[0]
    if node is None or node.op not in _ENTRIES:
        return None
    return node.inputs[0]


_ENTRIES = frozenset({slicing.slice_, slicing.split, gathering.gather})


def _layer(
    experts: Sequence[FfnBlock], layers: Mapping[Value, Linear], is_constant: IsConstant
) -> MoeBlock:
    first = experts[0]
    choice = _choice(first, is_constant)
    router = None if choice is None else _router(choice, layers, is_constant)
    count: DimLike = first.num_experts if first.num_experts > 1 else len(experts)
    if router is not None and router.out_size is not None:
        count = router.out_size
    return MoeBlock(
        _tokens(first.input, is_constant), router, count,
        None if choice is None else choice.static("k"), tuple(experts),
        tuple(node for expert in experts for node in expert.nodes),
    )  # fmt: skip


def _canonical(node: Node, layers: Mapping[Value, Linear]) -> MoeBlock:
    x, scores, up = node.inputs[0], node.inputs[1], node.inputs[2]
    if x is None or scores is None or up is None:
        raise AssertionError("moe has tokens, scores and weights")
    count = 0 if up.shape is None else up.shape[0]
    return MoeBlock(x, layers.get(scores), count, node.attrs["top_k"], (), (node,))


def _tokens(value: Value, is_constant: IsConstant) -> Value:
    """Returns the tensor that picked tokens were picked from, moves aside."""
    node = picking_node(value, is_constant)
    source = value if node is None or node.inputs[0] is None else node.inputs[0]
    while source.producer is not None and source.producer.op in _REPEATS:
        before = source.producer.inputs[0]
        if before is None:
            break
        source = before
    return source


def _choice(expert: FfnBlock, is_constant: IsConstant) -> Node | None:
    """Returns the top_k that decides which tokens an expert reads, or what its result weighs."""
    picking = picking_node(expert.input, is_constant)
    starts = [expert.up.picked] if picking is None else [picking.inputs[1]]
    output = behind_norm(expert.output)[0]
    for user in output.users:
        if user.op is arithmetic.mul:
            starts += [value for value in user.inputs if value is not output]
    queue = [value for value in starts if value is not None]
    seen: set[Value] = set()
    while queue and len(seen) < _MAX_ROUTING:
        value = queue.pop(0)
        node = value.producer
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op is selecting.top_k:
            return node
        queue += [v for v in node.inputs if v is not None and not is_constant(v)]
    return None


_REPEATS = frozenset({*MOVES, repeating.tile, repeating.expand})

_SCORING = frozenset({softmax.softmax, activation.sigmoid, arithmetic.add, *MOVES})


def _router(choice: Node, layers: Mapping[Value, Linear], is_constant: IsConstant) -> Linear | None:
    value = choice.inputs[0]
    while value is not None and value not in layers:
        node = value.producer
        if node is None or node.op not in _SCORING:
            return None
        varying = [v for v in node.inputs if v is not None and not is_constant(v)]
        value = varying[0] if len(varying) == 1 else None
    return None if value is None else layers[value]
