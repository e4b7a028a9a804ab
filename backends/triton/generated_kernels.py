"""Calls of generated kernels: the regions of a model, and one kernel for equal ones."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.torch.emitter import Absorbed, EmitContext
from regraft.backends.torch.graph_emitter import GraphEmitter
from regraft.backends.torch.naming import variable_hint
from regraft.backends.triton.chain_kernel import PLACE
from regraft.backends.triton.chain_source import KernelText, kernel_text
from regraft.backends.triton.kernels import (
    attention_tiles,
    configs,
    gated,
    generated,
    linear,
    operators,
    product_gradients,
    product_tiles,
)
from regraft.backends.triton.node_places import comment_of
from regraft.backends.triton.product_regions import ProductRegion, Products, Refusal
from regraft.backends.triton.product_source import product_text
from regraft.backends.triton.regions import Partition, Region
from regraft.ir.graph import Node
from regraft.ir.types import TensorType

LIBRARY = frozenset({"add_layer_norm", "add_rms_norm"})
"""Functions written by hand whose names are those of operators in order."""

HOMES = {
    **dict.fromkeys(("block_of", "operator", "rows_of"), operators.__name__),
    **dict.fromkeys(
        (
            "ChainGradient",
            "elements_below",
            "in_layout_of",
            "layout_of",
            "promoted",
            "gradients_by_kernel",
            "gradients_of",
            "keep_operands_and_shapes",
            "rows_together",
            "size_between",
            "summed",
        ),
        generated.__name__,
    ),
    **dict.fromkeys(("normal_cdf", "tanh_gate"), gated.__name__),
    "place_of_tile": product_tiles.__name__,
    "product_of": linear.__name__,
    "product_gradients": product_gradients.__name__,
    **dict.fromkeys(("config_for", "num_processors"), configs.__name__),
    "exact_tanh": attention_tiles.__name__,
}
"""Where the functions are defined that sources of generated kernels use."""


@dataclass(slots=True)
class GeneratedKernel:
    """A kernel of the package that was written for its model.

    Args:
        text: Its source.
        regions: What it computes.
    """

    text: KernelText
    regions: list[Region | ProductRegion]


class GeneratedKernels:
    """The generated kernels of a package, by name."""

    def __init__(self) -> None:
        self.kernels: dict[str, GeneratedKernel] = {}
        self.refused: list[Refusal] = []
        self._regions: dict[Node, Region | ProductRegion] = {}
        self._by_text: dict[str, str] = {}

    def find_products(
        self,
        nodes: Sequence[Node],
        left: set[Node],
        lost: Container[Node],
        activated: Mapping[Node, Node],
    ) -> dict[Node, Absorbed]:
        """Returns the nodes that products with chains take in.

        Args:
            nodes: In order.
            left: Nodes that are in no chain.
            lost: Those of them whose products others take in.
            activated: Activations that a kernel takes with a product in any case, by product.
        """
        found: dict[Node, Absorbed] = {}
        products = Products(nodes, left, lost, activated)
        self.refused += products.refused
        for region in products.regions:
            self._regions[region.anchor] = region
            moved = region.core.weight.producer
            for node in (*region.nodes, *([] if moved is None else [moved])):
                if node is not region.anchor and (node is not moved or node in left):
                    found[node] = Absorbed(region.anchor)
        return found

    def is_called(self, node: Node) -> bool:
        """Whether a node is the place of a call."""
        return node in self._regions

    def find(
        self, nodes: Sequence[Node], left: Iterable[Node], places: Mapping[Node, Node]
    ) -> dict[Node, Absorbed]:
        """Returns the nodes that calls of generated kernels take in.

        Args:
            nodes: In order.
            left: Nodes that are called otherwise.
            places: Those of them that are computed where another node stands, with that node.
        """
        found: dict[Node, Absorbed] = {}
        for region in Partition(nodes, left, places).regions():
            self._regions[region.anchor] = region
            for node in region.nodes:
                if node is not region.anchor:
                    found[node] = Absorbed(region.anchor)  # of several, the last stays
        return found

    def emit(self, e: EmitContext, graph: GraphEmitter) -> str | None:
        """Returns the call of the kernel that a node is the anchor of, or None."""
        region = self._regions.get(e.node)
        if region is None:
            return None
        text = product_text(region) if isinstance(region, ProductRegion) else kernel_text(region)
        name = self._named(text, region)
        operands = [
            graph.transposed(value) if idx == text.weight_idx else graph.expression(value)
            for idx, value in enumerate(text.operands)
        ]
        call = f"kernels.{name}({', '.join(operands)})"
        if len(region.outputs) == 1:
            return call
        names = graph.unpacked(call, [variable_hint(value) for value in region.outputs])
        own = ""
        for value, variable in zip(region.outputs, names, strict=True):
            if value.producer is e.node:
                own = variable
            else:
                graph.bind(value, variable)
        return own

    def _named(self, text: KernelText, region: Region | ProductRegion) -> str:
        key = _key(text)
        name = self._by_text.get(key)
        if name is None:
            name, number = text.stem, 1
            while name in self.kernels or name in LIBRARY:
                number += 1
                name = f"{text.stem}_{number}"
            self._by_text[key] = name
            self.kernels[name] = GeneratedKernel(text, [])
        self.kernels[name].regions.append(region)
        return name

    def report(self) -> list[dict[str, Any]]:
        """Returns what each kernel computes and saves, for a report."""
        return [
            {
                "kernel": name,
                "calls": len(kernel.regions),
                "nodes": _words(kernel.regions[0].nodes),
                **_chains(kernel.regions[0]),
                "computed_again": _words(kernel.regions[0].again),
                "shape": [str(dim) for dim in kernel.regions[0].space],
                "gradient": kernel.text.gradient,
                "saved_bytes": sum(region.saved_bytes for region in kernel.regions),
                "estimated_s": _seconds(sum(region.seconds for region in kernel.regions)),
                "separate_s": _seconds(sum(region.separate_seconds for region in kernel.regions)),
            }
            for name, kernel in self.kernels.items()
        ]

    def refusals(self) -> list[dict[str, Any]]:
        """Returns the products that the vendor's library runs though chains are around them."""
        return [
            {
                "product": comment_of(refusal.core.product),
                **_chains(refusal),
                "shape": [str(dim) for dim in refusal.core.result.shape or ()],
                "estimated_s": _seconds(refusal.seconds),
                "separate_s": _seconds(refusal.separate_seconds),
            }
            for refusal in self.refused
        ]


def _key(text: KernelText) -> str:
    """Returns the source without what the model names it by: comments and variables."""
    lines = [line for line in text.text.splitlines() if not line.lstrip().startswith("#")]
    names = "|".join(sorted(map(re.escape, text.variables), key=len, reverse=True))
    ends = r"((?:_out)?(?:_ptr|_stride)?|_total|_inner\d*|_size\d*)"
    places = {name: f"variable{idx}" for idx, name in enumerate(text.variables)}
    found = rf"(?<![.\w])({names}){ends}\b"
    return re.sub(found, lambda match: f"{places[match[1]]}{match[2]}", "\n".join(lines))


def _seconds(estimate: float) -> float:
    """Returns an estimate in four digits: it has no more."""
    return float(f"{estimate:.4g}")


def _words(nodes: Iterable[Node]) -> list[str]:
    return [node.op.name for node in nodes]


def _chains(region: Region | ProductRegion | Refusal) -> dict[str, list[str]]:
    if isinstance(region, Region):
        return {}
    return {"prologue": _words(region.before), "epilogue": _words(region.after)}


def source_of(name: str, kernel: GeneratedKernel) -> str:
    """Returns the source of a kernel under its name, behind what the model calls it with."""
    text = kernel.text.text.replace(PLACE, name)
    return f"{_about_calls(name, kernel)}\n{text}" if kernel.regions else text


def _about_calls(name: str, kernel: GeneratedKernel) -> str:
    """Returns a comment of the number of calls and the types of the first."""
    types = [
        TensorType(value.dtype, tuple(reversed(value.shape or ())))
        if idx == kernel.text.weight_idx and value.dtype is not None
        else value.type
        for idx, value in enumerate(kernel.text.operands)
    ]
    count = len(kernel.regions)
    calls = "called once, with" if count == 1 else f"called {count} times, first with"
    results = ", ".join(str(value.type) for value in kernel.regions[0].outputs)
    return f"# `{name}`, {calls} {', '.join(map(str, types))} -> {results}"
