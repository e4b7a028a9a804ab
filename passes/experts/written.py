"""Writing experts in place of a feed-forward block."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import weight
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg, moe, reshaping
from regraft.ir.weights import ArrayWeight, Role, Weight
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.experts.adaptive import adaptive_weights

Array = np.ndarray[Any, Any]

_ENDINGS = frozenset({"weight", "kernel", "transpose"})
"""What names of weights end in that says nothing of their layer."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Attributes of the operator `moe`.

    Args:
        top_k: How many compute a token.
        scoring: How scores become weights.
        renormalize: Whether these are divided by their sum.
        activation: Of experts.
        capacity: As of the operator.
        is_adaptive: Whether a threshold that the input sets chooses instead: see `adaptive`.
    """

    top_k: int
    scoring: str
    renormalize: bool
    activation: str
    capacity: float = 0.0
    is_adaptive: bool = False

    def attrs(self, num_experts: int) -> dict[str, Any]:
        """Returns them by name; of thresholds that the graph computes, any number is chosen."""
        if not self.is_adaptive:
            return {name: each for name, each in asdict(self).items() if name != "is_adaptive"}
        return {"top_k": num_experts, "scoring": "given", "activation": self.activation}


def name_of(block: FfnBlock) -> str:
    """Returns what the weights of a block have in common in their names, else that of its last.

    `layers.0.mlp` for `layers.0.mlp.fc1.weight` and `layers.0.mlp.fc2.weight`.
    """
    parts = [str(layer.weight.name).split(".") for layer in (block.up, block.down)]
    common = [one for one, _ in itertools.takewhile(_are_equal, zip(*parts, strict=False))]
    found = common if common and parts[0] != parts[1] else parts[1]
    while len(found) > 1 and found[-1] in _ENDINGS:
        found = found[:-1]
    return ".".join(found)


def _are_equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def add_weights(
    module: Module,
    block: FfnBlock,
    experts: Mapping[str, Weight],
    router: Array,
    router_bias: Array | None = None,
    *,
    is_adaptive: bool = False,
) -> dict[str, str]:
    """Adds the weights of experts and router as parameters; returns their names by operand.

    Args:
        module: The module.
        block: What they are made of.
        experts: By operand of `moe`.
        router: f64[D, E].
        router_bias: f64[E], or None.
        is_adaptive: Whether a threshold is needed, too: half of the largest for every input.
    """
    dtype = block.up.weight.dtype
    assert dtype is not None, "a constant has a type"
    prefix = name_of(block)
    names = {
        part: module.weights.add(f"{prefix}.experts.{part}", content, Role.PARAM)
        for part, content in experts.items()
    }
    content = ArrayWeight(router.astype(dtype.numpy))
    names["router"] = module.weights.add(f"{prefix}.router", content, Role.PARAM)
    if router_bias is not None:
        bias = ArrayWeight(router_bias.astype(dtype.numpy))
        names["router_bias"] = module.weights.add(f"{prefix}.router_bias", bias, Role.PARAM)
    for part, shape in (("threshold", (len(router), 1)), ("threshold_bias", (1,))):
        if is_adaptive:
            zeros = ArrayWeight(np.zeros(shape, dtype.numpy))
            names[part] = module.weights.add(f"{prefix}.{part}", zeros, Role.PARAM)
    return names


def write_experts(
    graph: Graph, block: FfnBlock, names: Mapping[str, str], routing: Routing
) -> None:
    """Replaces the result of a block by that of its experts.

    Args:
        graph: Where the block is.
        block: The block; `refusal` found nothing.
        names: Of the weights, by operand of `moe`, and `router`.
        routing: The operator's attributes.
    """
    node = block.down.nodes[0]
    b = Builder(graph, node, node.loc)
    x = channels_last(b, block.up.input, block.up.in_axis)
    result = _experts(b, x, x, names, routing)
    graph.replace(node, [laid_out(b, result, block.down.output, block.down.out_axis)])


def write_adapters(
    graph: Graph, block: FfnBlock, names: Mapping[str, str], routing: Routing, *, of_input: bool
) -> None:
    """Adds to the result of a block what experts make of it, or of what the block reads.

    The other arguments are those of `write_experts`.
    """
    node, axis = block.down.nodes[0], block.down.out_axis
    b = Builder(graph, node, node.loc)
    x = channels_last(b, block.up.input, block.up.in_axis)
    dense = b.op(node.op, *node.inputs, **node.attrs)
    rows = channels_last(b, dense, axis)
    if x.shape is None or rows.shape is None:
        raise AssertionError("refused otherwise")
    if rows.shape[:-1] != x.shape[:-1]:
        rows = b.op(reshaping.reshape, rows, shape=(*x.shape[:-1], rows.shape[-1]))
    read = x if of_input else rows
    added = laid_out(b, _experts(b, read, x, names, routing), dense, axis)
    graph.replace(node, [b.op(arithmetic.add, dense, added)])


def _experts(
    b: Builder, rows: Value, x: Value, names: Mapping[str, str], routing: Routing
) -> Value:
    """Returns what the experts that a router of `x` chooses make of `rows`."""

    def parameter(part: str) -> Value:
        value = b.op(weight, name=names[part])
        value.name = names[part]
        return value

    router = parameter("router")
    scores = b.op(linalg.matmul, x, router)
    if "router_bias" in names:
        scores = b.op(arithmetic.add, scores, parameter("router_bias"))
    if routing.is_adaptive:
        bounds = parameter("threshold"), parameter("threshold_bias")
        scores = adaptive_weights(b, x, scores, *bounds)
    parts = [each.name for each in moe.moe.operands[2:]]
    operands = [parameter(part) if part in names else None for part in parts]
    while operands[-1] is None:
        operands.pop()
    count = None if router.shape is None else router.shape[1]
    assert isinstance(count, int), "a weight has a shape"
    return b.op(moe.moe, rows, scores, *operands, **routing.attrs(count))


def channels_last(b: Builder, value: Value, axis: int) -> Value:
    """Returns a value with an axis, counted from the end, as its last."""
    rank = value.rank
    if axis == -1 or rank is None:
        return value
    order = [place for place in range(rank) if place != axis + rank]
    return b.op(reshaping.transpose, value, perm=(*order, axis + rank))


def laid_out(b: Builder, rows: Value, like: Value, axis: int) -> Value:
    """Returns rows `[*, O]` in the shape of a value that has the channels at `axis`."""
    assert like.shape is not None, "refused otherwise"
    rank, place = len(like.shape), axis + len(like.shape)
    sizes = (*like.shape[:place], *like.shape[place + 1 :], like.shape[place])
    if rows.shape != sizes:
        rows = b.op(reshaping.reshape, rows, shape=sizes)
    if axis == -1:
        return rows
    order = list(range(rank - 1))
    order.insert(place, rank - 1)
    return b.op(reshaping.transpose, rows, perm=tuple(order))
