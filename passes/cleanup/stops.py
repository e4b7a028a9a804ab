"""Ends of gradients, which mean nothing where nothing trains."""

from __future__ import annotations

from regraft.ir.module import Module
from regraft.ir.ops.cast import stop_gradient


def without_stops(module: Module) -> int:
    """Removes every `stop_gradient`, so that rewrites see what it stands between.

    Returns:
        How many there were.
    """
    found = [node for node in module.graph.walk() if node.op is stop_gradient]
    for node in found:
        x = node.inputs[0]
        if x is None or node.graph is None:
            raise AssertionError("stop_gradient takes one operand, in a graph")
        node.graph.replace(node, [x])
    return len(found)
