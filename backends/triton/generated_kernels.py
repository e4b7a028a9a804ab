"""Calls of generated kernels: the regions of a model, and one kernel for equal ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.torch.emitter import Absorbed, EmitContext
from regraft.backends.torch.graph_emitter import GraphEmitter
from regraft.backends.torch.naming import variable_hint
from regraft.backends.triton.chain_kernel import PLACE
from regraft.backends.triton.chain_source import KernelText, kernel_text
from regraft.backends.triton.kernels import attention, configs, gated, generated, operators
from regraft.backends.triton.regions import Partition, Region
from regraft.ir.graph import Node

LIBRARY = frozenset({"add_layer_norm", "add_rms_norm"})
"""Functions written by hand whose names are those of operators in order."""

HOMES = {
    **dict.fromkeys(("block_of", "operator", "rows_of"), operators.__name__),
    **dict.fromkeys(
        ("gradients_by_reference", "keep_operands", "rows_together", "size_between"),
        generated.__name__,
    ),
    **dict.fromkeys(("normal_cdf", "tanh_gate"), gated.__name__),
    "config_for": configs.__name__,
    "exact_tanh": attention.__name__,
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
    regions: list[Region]


class GeneratedKernels:
    """The generated kernels of a package, by name."""

    def __init__(self) -> None:
        self.kernels: dict[str, GeneratedKernel] = {}
        self._regions: dict[Node, Region] = {}
        self._by_text: dict[str, str] = {}

    def find(self, nodes: Sequence[Node], left: Iterable[Node]) -> dict[Node, Absorbed]:
        """Returns the nodes that calls of generated kernels take in.

        Args:
            nodes: In order.
            left: Nodes that are called otherwise.
        """
        found: dict[Node, Absorbed] = {}
        for region in Partition(nodes, left).regions():
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
        text = kernel_text(region)
        name = self._named(text, region)
        call = f"kernels.{name}({', '.join(graph.expression(value) for value in text.operands)})"
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

    def _named(self, text: KernelText, region: Region) -> str:
        name = self._by_text.get(text.text)
        if name is None:
            name, number = text.stem, 1
            while name in self.kernels or name in LIBRARY:
                number += 1
                name = f"{text.stem}_{number}"
            self._by_text[text.text] = name
            self.kernels[name] = GeneratedKernel(text, [])
        self.kernels[name].regions.append(region)
        return name

    def report(self) -> list[dict[str, Any]]:
        """Returns what each kernel computes and saves, for a report."""
        return [
            {
                "kernel": name,
                "calls": len(kernel.regions),
                "nodes": [node.op.name for node in kernel.regions[0].nodes],
                "computed_again": [node.op.name for node in kernel.regions[0].again],
                "shape": [str(dim) for dim in kernel.regions[0].space],
                "saved_bytes": sum(region.saved_bytes for region in kernel.regions),
                "estimated_s": sum(region.seconds for region in kernel.regions),
                "separate_s": sum(region.separate_seconds for region in kernel.regions),
            }
            for name, kernel in self.kernels.items()
        ]


def source_of(name: str, kernel: GeneratedKernel) -> str:
    """Returns the source of a kernel under its name."""
    return kernel.text.text.replace(PLACE, name)
