"""Which weights are those of experts: what is trained where the rest of the model stays."""

from __future__ import annotations

from regraft.ir.constants import is_constant, weight
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.passes.analysis.blocks import graphs_of

_MAX_STEPS = 8


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
    """Returns the constants between the tokens and the scores: those of the last linear layer."""
    found: list[Value] = []
    for _ in range(_MAX_STEPS):
        node = None if scores is None else scores.producer
        if node is None or node.op is moe.moe:
            break
        found += [value for value in node.inputs if value is not None and is_constant(value)]
        varying = [value for value in node.inputs if value is not None and not is_constant(value)]
        if len(varying) != 1 or _multiplies(node):
            break
        scores = varying[0]
    return found


def _multiplies(node: Node) -> bool:
    return node.op.name in ("matmul", "gemm", "conv")


def _name(value: Value | None) -> str | None:
    maker = None if value is None else value.producer
    return str(maker.attrs["name"]) if maker is not None and maker.op is weight else None
