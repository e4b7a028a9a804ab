"""Recognition of structure: what every pass family asks instead of matching names.

`recognize` finds attention, feed-forward blocks, norms, activations, layers of experts and repeated
layers by what they compute, in the graph and in all bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from regraft.ir.graph import Graph, Node
from regraft.ir.module import Module
from regraft.passes.analysis.attention import AttentionFinder
from regraft.passes.analysis.attention_blocks import AttentionBlock, attention_blocks
from regraft.passes.analysis.attention_forms import OtherAttention, products_of_three
from regraft.passes.analysis.cones import ConeFinder
from regraft.passes.analysis.dependence import data_values
from regraft.passes.analysis.ffn import FfnBlock, FfnFinder
from regraft.passes.analysis.group_norms import join_groups
from regraft.passes.analysis.layers import LayerGroup, repeated_layers
from regraft.passes.analysis.linear_layers import Linear
from regraft.passes.analysis.moe_layers import MoeBlock, moe_layers
from regraft.passes.analysis.norms import NormBlock, NormFinder, Scale
from regraft.passes.analysis.rotary import find_rotary
from regraft.passes.analysis.unary_functions import Activation, ActivationFinder, UnaryFunction
from regraft.passes.protocol import Skip


class Block(Protocol):
    """What every kind of block has."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What computes it."""

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """What was recognized in a module, in topological order.

    Args:
        norms: Normalizations.
        activations: Activation functions, those inside feed-forward blocks included.
        ffn: Feed-forward blocks.
        moe: Layers of experts; their experts are not among `ffn`.
        attention: Attention blocks that weigh values by a softmax of scores.
        other_attention: Attention of other forms: talking heads, factorized, linear.
        layers: Groups of repeated layers.
        skipped: Places that nearly are one of these, with the reason.
    """

    norms: tuple[NormBlock, ...] = ()
    activations: tuple[Activation, ...] = ()
    ffn: tuple[FfnBlock, ...] = ()
    moe: tuple[MoeBlock, ...] = ()
    attention: tuple[AttentionBlock, ...] = ()
    other_attention: tuple[OtherAttention, ...] = ()
    layers: tuple[LayerGroup, ...] = ()
    skipped: tuple[Skip, ...] = ()

    def describe(self) -> dict[str, list[dict[str, object]]]:
        """Returns the blocks as INTERFACE's `blocks` document."""
        kinds: dict[str, Sequence[Block]] = {
            "attention": (*self.attention, *self.other_attention),
            "ffn": self.ffn,
            "norm": self.norms,
            "moe": self.moe,
            "layers": self.layers,
        }
        return {kind: [block.describe() for block in found] for kind, found in kinds.items()}


class Recognizer:
    """Recognizes blocks graph by graph; equal structures are identified once."""

    def __init__(self) -> None:
        self._norms = NormFinder()
        self._activations = ActivationFinder()
        self._constants = ConeFinder(reductions=False)

    def graph(self, graph: Graph) -> Blocks:
        """Returns the blocks of one graph, without those of its bodies; cost O(nodes)."""
        taken: set[Node] = set()
        search = self._norms.find(graph, taken)
        norms = join_groups(search.norms, taken)
        activations = self._activations.find(graph, taken)
        self._constants.scan(graph)
        is_constant = self._constants.is_constant
        finder = FfnFinder(graph, is_constant, norms)
        moe, ffn = moe_layers(graph, finder.find(activations), finder.layers, is_constant)
        attentions = AttentionFinder()
        blocks = attention_blocks(graph, attentions.find(graph), find_rotary(graph))
        unread = [
            Skip(str(value.name), f"attention: {reason}") for value, reason in attentions.rejected
        ]
        return Blocks(
            tuple(norms),
            activations,
            tuple(ffn),
            tuple(moe),
            tuple(blocks),
            (*attentions.others, *products_of_three(graph, data_values(graph))),
            tuple(repeated_layers(graph)),
            skipped=(*search.skipped, *unread),
        )


def recognize(module: Module) -> Blocks:
    """Returns the blocks of a module and of all its bodies; cost O(nodes)."""
    recognizer = Recognizer()
    found = [recognizer.graph(graph) for graph in graphs_of(module.graph)]
    return Blocks(
        tuple(block for each in found for block in each.norms),
        tuple(block for each in found for block in each.activations),
        tuple(block for each in found for block in each.ffn),
        tuple(block for each in found for block in each.moe),
        tuple(block for each in found for block in each.attention),
        tuple(block for each in found for block in each.other_attention),
        tuple(block for each in found for block in each.layers),
        tuple(skip for each in found for skip in each.skipped),
    )


def graphs_of(graph: Graph) -> list[Graph]:
    """Returns a graph and its bodies, at any depth."""
    return [graph, *(body for node in graph.walk() for body in node.bodies)]


__all__ = [
    "Activation",
    "AttentionBlock",
    "Block",
    "Blocks",
    "FfnBlock",
    "LayerGroup",
    "Linear",
    "MoeBlock",
    "NormBlock",
    "OtherAttention",
    "Recognizer",
    "Scale",
    "UnaryFunction",
    "graphs_of",
    "recognize",
]
