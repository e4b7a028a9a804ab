"""Where inputs of products can be cut: values by the products that read them, and gates."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.passes.analysis.blocks import recognize
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.calibration.products import ConstantProduct, constant_products
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A value whose last axis loses entries before products read it.

    Args:
        name: Of the weight that reads it, or of the first of several.
        value: f[..., K].
        readers: Products by constants that sum over its last axis.
        partner: Of a gate, what it is multiplied by, f[..., K].
        users: Nodes that read the cut value.
    """

    name: str
    value: Value
    readers: tuple[ConstantProduct, ...]
    partner: Value | None
    users: tuple[Node, ...]

    def norms(self) -> Array:
        """Returns how much each entry's weights weigh, over all readers: f64[K]."""
        total = 0.0
        for each in self.readers:
            total = total + np.square(each.stack()[0].astype(np.float64)).sum(1)
        found: Array = np.sqrt(np.asarray(total))
        return found


def inputs_of_products(
    module: Module, only: Sequence[str], keep: Sequence[str]
) -> tuple[list[Place], list[Skip]]:
    """Returns the values that products by matrices sum over, each once.

    Args:
        module: The module.
        only: Names, or globs, of weights: the others are left alone; empty for all.
        keep: Names, or globs, of weights to leave alone.
    """
    by_value: dict[Value, list[ConstantProduct]] = {}
    skipped: list[Skip] = []
    for each in constant_products(module.graph):
        if isinstance(each, Skip):
            skipped.append(each)
            continue
        reason = _reason(each, only, keep)
        if reason is None:
            by_value.setdefault(each.x, []).append(each)
        else:
            skipped.append(Skip(each.name, reason))
    places = [
        Place(products[0].name, value, tuple(products), None, tuple(p.node for p in products))
        for value, products in by_value.items()
    ]
    return places, skipped


def _reason(product: ConstantProduct, only: Sequence[str], keep: Sequence[str]) -> str | None:
    if product.layout.key != ("rows", False, ()) or product.x_idx != 0:
        return f"`{product.node.op.name}` does not sum over the last axis of what varies"
    if len(product.weight.shape or ()) != 2:
        return "a stack of matrices"
    name = product.name
    if any(fnmatch.fnmatchcase(name, each) for each in keep):
        return "kept by option"
    if only and not any(fnmatch.fnmatchcase(name, each) for each in only):
        return "not named by option"
    return None


def gates(
    module: Module, only: Sequence[str], keep: Sequence[str]
) -> tuple[list[Place], list[Skip]]:
    """Returns the activated gates of feed-forward blocks, with what they are multiplied by."""
    places, skipped = [], []
    products = {
        each.node: each
        for each in constant_products(module.graph)
        if isinstance(each, ConstantProduct)
    }
    for block in recognize(module).ffn:
        down = products.get(block.down.nodes[-1])
        name = str(block.output.name) if down is None else down.name
        found = None if down is None else _gate(block)
        if down is None or block.gate is None or found is None:
            skipped.append(Skip(name, "the block has no gate that is multiplied by a product"))
            continue
        reason = _reason(down, only, keep)
        if reason is not None:
            skipped.append(Skip(name, reason))
            continue
        node, gate, partner = found
        places.append(Place(name, gate, (down,), partner, (node,)))
    return places, skipped


def _gate(block: FfnBlock) -> tuple[Node, Value, Value] | None:
    """Returns the product of gate and value, the activated gate, and the value."""
    inside = set(block.nodes)
    node = block.down.input.producer
    if node is None or node not in inside or node.op is not arithmetic.mul:
        return None
    a, b = node.inputs
    if a is None or b is None or a.shape != b.shape:
        return None
    # the activated side has an operator that is neither a linear layer nor movement of data
    steps = [_num_pointwise(value, inside) for value in (a, b)]
    if steps[0] == steps[1]:
        return None
    gate, partner = (a, b) if steps[0] > steps[1] else (b, a)
    return node, gate, partner


def _num_pointwise(value: Value, inside: set[Node]) -> int:
    """Returns how many elementwise operators without constants lead to a value in a block."""
    count = 0
    node = value.producer
    while node is not None and node in inside:
        varying = [v for v in node.inputs if v is not None and not is_constant(v)]
        if len(varying) == len([v for v in node.inputs if v is not None]) and (
            node.outputs[0].shape == varying[0].shape
        ):
            count += 1
        node = varying[0].producer
    return count
