"""What a module still shares with the one before a rewrite, and where it has to be fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.ir.constants import is_constant, weight
from regraft.ir.derive import source_names
from regraft.ir.extract import nodes_between
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.norm import batch_norm
from regraft.ir.opspec import Trait
from regraft.ir.weights import Role
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.analysis.linear_layers import Linear, linear_layers
from regraft.passes.analysis.position_mask import mask_of
from regraft.passes.recovery.fading import rising_shares
from regraft.passes.recovery.task import Block, Refit
from regraft.passes.recovery.zeros import sparse_tensors


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """A module beside the one before the rewrite.

    Args:
        module: The rewritten module.
        teacher: The one before.
        changed: Nodes that compute something that the teacher does not, in order.
        pairs: Named values of the module -> those of the same name and type in the teacher: what
            the rewrite left for others to read under its name means the same.
    """

    module: Module
    teacher: Module
    changed: tuple[Node, ...]
    pairs: dict[Value, Value]

    @property
    def layers(self) -> list[Layer]:
        """The module's repeated layers."""
        return [each for group in repeated_layers(self.module.graph) for each in group.layers]

    def is_changed(self, layer: Layer) -> bool:
        """Returns whether a layer computes something else than any part of the teacher."""
        return not set(self.changed).isdisjoint(layer.nodes)


def compare(module: Module, teacher: Module) -> Shared:
    """Returns what two modules share; cost: O(nodes)."""
    known: dict[Hashable, int] = {}
    theirs = set(_keys(teacher, known).values())
    own = _keys(module, known)
    changed = tuple(
        node
        for node in module.graph
        if not is_constant(node.output) and any(own[v] not in theirs for v in node.outputs)
    )
    names = _by_name(teacher.graph)
    pairs = {
        value: names[name]
        for name, value in _by_name(module.graph).items()
        if name in names and names[name].type == value.type
    }
    return Shared(module, teacher, changed, pairs)


def _by_name(graph: Graph) -> dict[str, Value]:
    """Returns the values that nodes make and that a name stands for, once; constants aside."""
    values = [
        value
        for node in graph
        if Trait.CONSTANT not in node.op.traits
        for value in node.outputs
        if value.name is not None
    ]
    counts = Counter(value.name for value in values)
    return {str(value.name): value for value in values if counts[value.name] == 1}


def _keys(module: Module, known: dict[Hashable, int]) -> dict[Value, int]:
    """Returns a number per value: equal numbers, equal computations of equal weights."""

    def number(key: Hashable) -> int:
        return known.setdefault(key, len(known))

    found = {value: number(("input", value.name)) for value in module.graph.inputs}
    for node in module.graph:
        key: Hashable
        if node.op is weight:
            # weights that no pass touched are shared by a module and its copies
            key = ("weight", id(module.weights[node.attrs["name"]]))
        elif node.bodies or not node.op.traits & (Trait.PURE | Trait.CONSTANT):
            key = ("one of its kind", id(node))
        else:
            operands = tuple(None if value is None else found[value] for value in node.inputs)
            key = (node.op.name, tuple(map(_plain, node.attrs.values())), operands)
        for idx, value in enumerate(node.outputs):
            found[value] = number((key, idx))
    return found


def _plain(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tobytes())
    return repr(value)


def trained_weights(shared: Shared, before: int = 0) -> tuple[str, ...]:
    """Returns the checkpoint tensors that changed nodes read, and no others do.

    Args:
        shared: The module and its teacher.
        before: So many layers before the first changed one count as changed; at least one does
            where changed nodes have no weights.
    """
    found = _weights_of(shared, set(shared.changed))
    if found and before == 0:
        return found
    layers = shared.layers
    first = next((i for i, layer in enumerate(layers) if shared.is_changed(layer)), len(layers))
    earlier = layers[max(0, first - max(1, before)) : first]
    return _weights_of(shared, {*shared.changed, *(n for layer in earlier for n in layer.nodes)})


def _weights_of(shared: Shared, nodes: set[Node]) -> tuple[str, ...]:
    module = shared.module
    varying = _varying(module.graph)
    inside = [node for node in module.graph if node in nodes]
    outside = [node for node in module.graph if node not in nodes and node.output in varying]
    kept = {*_read(module, outside, varying), *rising_shares(module)}
    return tuple(name for name in _read(module, inside, varying) if name not in kept)


def _varying(graph: Graph) -> set[Value]:
    """Returns the values that depend on an input, and what depends on nothing at all but chance."""
    found = set(graph.inputs)
    for node in graph:
        if any(value in found for value in node.inputs if value is not None):
            found.update(node.outputs)
    return found


def _read(module: Module, nodes: Iterable[Node], varying: set[Value]) -> Iterator[str]:
    """Yields the float parameters that nodes read, rearranged or not, each once."""
    constants = dict.fromkeys(
        v for node in nodes for v in _fitted(node) if v is not None and v not in varying
    )
    makers, _ = nodes_between(frozenset(), constants)
    names: dict[str, None] = {}
    for node in makers:
        if node.op is not weight:
            continue
        name = module.weights.resolve(node.attrs["name"])
        if module.weights.role(name) is Role.PARAM and module.weights[name].dtype.is_float:
            names.update(dict.fromkeys(source_names(name, module.weights[name])))
    yield from names


def _fitted(node: Node) -> Sequence[Value | None]:
    """Returns the operands that training may move: statistics are measured, not fitted."""
    return node.inputs[:3] if node.op is batch_norm else node.inputs


def matrices(shared: Shared, names: Iterable[str]) -> tuple[str, ...]:
    """Returns those of the weights that products multiply by: what adapters take."""
    module = shared.module
    found: set[str] = set()
    for layer in linear_layers(module.graph, is_constant).values():
        made = layer.weight.producer
        if made is not None and made.op is weight and layer.weight.rank == 2:
            name = module.weights.resolve(made.attrs["name"])
            found.update(source_names(name, module.weights[name]))
    return tuple(name for name in names if name in found)


def hidden_pairs(shared: Shared) -> list[tuple[Value, Value]]:
    """Returns the results of changed layers with what the teacher has under their names."""
    results = [layer.output for layer in shared.layers if shared.is_changed(layer)]
    return [(value, shared.pairs[value]) for value in results if value in shared.pairs]


def blocks(shared: Shared, mask: str | None) -> tuple[Block, ...]:
    """Returns the changed layers whose stream the teacher has under the same names."""
    pairs = shared.pairs
    return tuple(
        Block(((layer.input, pairs[layer.input]),), layer.output, pairs[layer.output],
              mask_of(shared.module, layer.output, mask))
        for layer in shared.layers
        if shared.is_changed(layer) and layer.input in pairs and layer.output in pairs
    )  # fmt: skip


def refits(shared: Shared, mask: str | None) -> tuple[Refit, ...]:
    """Returns the linear layers at the end of branches, in layers that were rewritten themselves.

    A layer was when its stream is another than in the teacher, or a weight is. Those behind it,
    which compute the same of other values, gain nothing from it. A sparse matrix is trained alone:
    what solves for it would fill its zeros.
    """
    linear = linear_layers(shared.module.graph, is_constant)
    sparse = set(sparse_tensors(shared.module))
    theirs = {each.output: each for group in repeated_layers(shared.teacher.graph)
              for layer in group.layers for each in layer.sums}  # fmt: skip
    found = []
    for layer in shared.layers:
        sums = [each for each in layer.sums if shared.pairs.get(each.output) in theirs]
        rewritten = any(
            shared.pairs.get(each.skip) is not theirs[shared.pairs[each.output]].skip
            or not _same_weights(shared, each.nodes, theirs[shared.pairs[each.output]].nodes)
            for each in sums
        )
        if not rewritten:
            continue
        for each in sums:
            last = linear.get(each.branch)
            if last is not None and _is_plain(last) and sparse.isdisjoint(_tensors(shared, last)):
                target = shared.pairs[each.output]
                place = mask_of(shared.module, each.output, mask)
                found.append(Refit(last.input, last.weight, last.bias, each.output, target, place))
    return tuple(found)


def _tensors(shared: Shared, layer: Linear) -> list[str]:
    """Returns the checkpoint tensors of a layer's matrix."""
    made = layer.weight.producer
    if made is None or made.op is not weight:
        return []
    name = shared.module.weights.resolve(made.attrs["name"])
    return source_names(name, shared.module.weights[name])


def _is_plain(layer: Linear) -> bool:
    """Returns whether a layer is `x @ w + b` along the last axis, with one matrix."""
    is_last = layer.in_axis == layer.out_axis == -1 and layer.weight_out == -1
    is_weight = layer.weight.producer is not None and layer.weight.producer.op is weight
    return is_last and is_weight and layer.weight.rank == 2 and not layer.is_convolution


def _same_weights(shared: Shared, own: Iterable[Node], theirs: Iterable[Node]) -> bool:
    return _content(shared.module, own) == _content(shared.teacher, theirs)


def _content(module: Module, nodes: Iterable[Node]) -> list[int]:
    operands = (v.producer for node in nodes for v in node.inputs if v is not None)
    return [
        id(module.weights[made.attrs["name"]])
        for made in operands
        if made is not None and made.op is weight
    ]
