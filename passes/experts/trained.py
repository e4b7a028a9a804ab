"""Which weights are those of experts: what is trained where the rest of the model stays."""

from __future__ import annotations

from regraft.ir.constants import is_constant, weight
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, logical, moe
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.experts.adaptive import uncast

_MAX_STEPS = 16
"""Most values between experts and the weights of their router, conversions aside."""

_OF_WEIGHTS = (arithmetic.sub, arithmetic.div, logical.where)
"""What makes weights of probabilities, thresholds and sums of them (`adaptive`)."""


def weights_of_experts(module: Module) -> tuple[str, ...]:
    """Returns the names of all weights that experts and their routers read, for `Task.trained`.

    Of `upcycle-ffn{method=adapter}` that is the adapters and the routers: the block that they read
    is no expert (Wu et al., Parameter-Efficient Sparsity Crafting, 2024, section 3.2).
    """
    found: dict[str, None] = {}
    for graph in graphs_of(module.graph):
        for node in graph:
            if node.op is moe.moe:
                values = [*node.inputs[2:], *_of_router(node.inputs[1])]
                found.update(dict.fromkeys(name for each in values if (name := _name(each))))
    return tuple(found)


def _of_router(scores: Value | None) -> list[Value]:
    """Returns the constants between the tokens and the scores: those of the last linear layers."""
    found: dict[Value, None] = {}
    reached = [uncast(scores)]
    for step in range(_MAX_STEPS):
        value = reached[step] if step < len(reached) else None
        node = None if value is None else value.producer
        if node is None or node.op is moe.moe:
            continue
        given = [each for operand in node.inputs if (each := uncast(operand)) is not None]
        found.update(dict.fromkeys(each for each in given if is_constant(each)))
        varying = [each for each in given if not is_constant(each)]
        if not _multiplies(node) and (len(varying) == 1 or node.op in _OF_WEIGHTS):
            reached += [each for each in varying if each not in reached]
    return list(found)


def _multiplies(node: Node) -> bool:
    return node.op.name in ("matmul", "gemm", "conv")


def _name(value: Value | None) -> str | None:
    value = uncast(value)
    maker = None if value is None else value.producer
    return str(maker.attrs["name"]) if maker is not None and maker.op is weight else None
