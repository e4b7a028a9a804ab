"""`inspect`: size and cost of a module as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from regraft.activations import Activations
from regraft.ir.constants import opaque
from regraft.ir.dims import Dim, DimLike, bind
from regraft.ir.errors import UsageError
from regraft.ir.flops import flops_of, macs_of
from regraft.ir.graph import Graph, Node
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.weights import Role
from regraft.passes.analysis.blocks import recognize
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.analysis.liveness import peak_activation_bytes
from regraft.passes.check.runners import EvalRunner, accepts
from regraft.passes.check.samples import generate_samples, input_symbols
from regraft.passes.cleanup import Canonicalize
from regraft.passes.depth.report import depth_report
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context, Samples
from regraft.report import operator_counts
from regraft.samples import check_dims

DEFAULT_SIZE = 128
"""Size of a symbol that is not the leading axis of an input, when the user gives none."""


def default_sizes(module: Module, given: Mapping[str, int]) -> dict[str, int]:
    """Returns a size for every input symbol: the given one, else 1 for leading axes and 128."""
    leading = {str(value.shape[0]) for value in module.graph.inputs if value.shape and value.rank}
    sizes = {
        symbol.name: 1 if symbol.name in leading else DEFAULT_SIZE
        for symbol in input_symbols(module)
    }
    return {**sizes, **given}


def inspect_module(module: Module, dims: Mapping[str, int]) -> dict[str, Any]:
    """Returns INTERFACE's `inspect` document.

    Args:
        module: The module.
        dims: Sizes to report for; missing ones get defaults, and `dims` in the result says which.
    """
    check_dims(module, dims)
    sizes = default_sizes(module, dims)
    weights = module.weights
    parameters = sum(
        _count(weights[name].shape) for name in weights if weights.role(name) is Role.PARAM
    )
    macs, unknown = _total(module.graph, macs_of, sizes)
    flops, _ = _total(module.graph, flops_of, sizes)
    return {
        "parameters": parameters,
        "bytes": sum(weights[name].nbytes for name in weights),
        "macs": macs,
        "flops": flops,
        "flops_unknown": unknown,
        "peak_activation_bytes": peak_activation_bytes(module.graph, sizes),
        "dims": sizes,
        "operators": operator_counts(module.graph),
        "blocks": _blocks(module),
        "opaque": sorted(
            {node.attrs["op_type"] for node in module.graph.walk() if node.op is opaque}
        ),
        "inputs": {str(value.name): str(value.type) for value in module.graph.inputs},
        "outputs": {
            name: str(value.type)
            for name, value in zip(module.graph.output_names, module.graph.outputs, strict=True)
        },
        "warnings": list(module.warnings),
    }


def _blocks(module: Module) -> dict[str, list[dict[str, object]]]:
    """Returns the blocks of the canonical form, which is free of what exporters leave around."""
    canonical = module.clone()
    Canonicalize().run(canonical, Context())
    return recognize(canonical).describe()


def describe_couplings(module: Module) -> dict[str, Any]:
    """Returns which axes prune together and which are pinned, of the canonical form.

    Each group has its number of positions, the blocks that may keep other ones, how many groups are
    like it, and the weight axes that it stands in.
    """
    canonical = module.clone()
    for item in (Canonicalize(), Fuse(), Canonicalize()):
        item.run(canonical, Context())
    coupling = Coupling(canonical)
    return {
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "blocks": group.num_blocks,
                "kind": group.kind,
                "alike": len(coupling.isomorphic[group.kind]),
                "counted_by_norm": group.counted,
                "weights": _weight_axes(group.weights),
            }
            for group in coupling.groups
        ],
        "pinned": [
            {
                "size": item.size,
                "weights": _weight_axes(item.weights),
                "op": item.why.op,
                "node": item.why.node,
                "axis": item.why.axis,
                "why": str(item.why),
            }
            for item in coupling.pinned
        ],
    }


def describe_depth(module: Module, samples: Samples, dims: Mapping[str, int]) -> dict[str, Any]:
    """Returns what every repeated layer does on samples, of the canonical form.

    Args:
        module: The module.
        samples: What it runs on; where there are none, they are generated.
        dims: Sizes of generated ones.

    Raises:
        UsageError: When no layers repeat.
    """
    canonical = module.clone()
    for item in (Canonicalize(), Fuse(), Canonicalize()):
        item.run(canonical, Context())
    if not samples:
        runs = accepts(EvalRunner(module.clone()))
        samples = [each.inputs for each in generate_samples(module, runs, dims=dims)]
    report = depth_report(canonical, Activations(), samples)
    if not report.layers:
        raise UsageError(
            "no layers repeat in this model", hint="`inspect` without `--depth` lists its operators"
        )
    return {**report.describe(), "samples": len(samples)}


def _weight_axes(slots: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"name": name, "axis": axis} for name, axis in slots]


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _total(
    graph: Graph, cost: Callable[[Node], DimLike | None], sizes: Mapping[str, int]
) -> tuple[int, dict[str, int]]:
    """Returns the summed cost, and how many nodes of which operator have an unknown one."""
    total = 0
    unknown: dict[str, int] = {}
    for node in graph.walk():
        if node.op.traits & Trait.CONSTANT:
            continue
        one = cost(node)
        bound = None if one is None else bind(one, sizes)
        if bound is None or isinstance(bound, Dim):
            name = node.attrs["op_type"] if node.op is opaque else node.op.name
            unknown[name] = unknown.get(name, 0) + 1
            continue
        total += bound
    return total, unknown
