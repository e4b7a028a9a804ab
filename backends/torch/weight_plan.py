"""Which tensors a generated module registers, under which names, and how weights follow from them.

A weight that is a mere rearrangement of a checkpoint tensor (transposed, reshaped, joined, or one
of slices that cover it) registers the tensor itself, under its own name, and is rearranged in
`forward`: the `state_dict` is the model's own and training works. What is left of a pruned tensor
is registered in the layout of the tensor, once for all that read it. Anything else (scaled, cast
weights) registers the result under the name of the tensor that it follows from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from regraft.backends.torch.adopted_names import TOOL_MADE, adopted_names
from regraft.backends.torch.naming import identifier
from regraft.ir.constants import weight as weight_op
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.selecting import selected_first
from regraft.ir.steps import (
    Concat,
    Reshape,
    Slice,
    Source,
    Transpose,
    Tree,
    children,
    describe,
    sources,
)
from regraft.ir.types import DType
from regraft.ir.weights import Role, Weight, WeightStore

_OWN_ATTRIBUTES = frozenset(dir(nn.Module()))


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A tensor that the generated module registers.

    Args:
        path: Its dotted name there.
        tree: What it holds: a checkpoint tensor or what follows from one.
        role: Parameter, buffer, or constant (a buffer outside the `state_dict`).
        weight: What it holds when the module starts.
    """

    path: str
    tree: Tree
    role: Role
    weight: Weight

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self.weight.shape

    @property
    def is_trainable(self) -> bool:
        """Whether it is an `nn.Parameter`: PyTorch has gradients of floats alone."""
        return self.role is Role.PARAM and (self.dtype.is_float or self.dtype.is_complex)


@dataclass(slots=True)
class WeightPlan:
    """The tensors of a generated module.

    Attributes:
        slots: By path, in order of first use.
        trees: What each stored weight is, by its name in the module's store.
        held: The slot of every tree that is registered.
        ties: Further paths of a slot: alias -> path.
        names: Path -> name in the checkpoint, where they differ.
        origins: The checkpoint names that have a slot.
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    held: dict[Tree, Slot] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    origins: set[str] = field(default_factory=set)
    _containers: set[str] = field(default_factory=set)

    def reserve(self, name: str) -> str:
        """Returns the free path nearest to a checkpoint name, and takes it."""
        base = self._path(name)
        if any(each in self.slots or each in self.ties for each in containers(base)):
            base = identifier(base)  # what would hold it is a tensor: no tensor holds another
        path, number = base, 0
        while self._is_taken(path):
            number += 1
            path = f"{base}_{number}"
        self.occupy(path)
        return path

    def occupy(self, path: str) -> None:
        """Notes the containers that a path needs."""
        self._containers.update(containers(path))

    def _path(self, name: str) -> str:
        if TOOL_MADE.search(name):
            return identifier(name)
        parts = name.split(".")
        if not all(parts) or _OWN_ATTRIBUTES.intersection(parts):
            return identifier(name)
        return name

    def _is_taken(self, path: str) -> bool:
        return (
            path in _OWN_ATTRIBUTES
            or path in self.slots
            or path in self.ties
            or path in self._containers
            or any(prefix in self.slots or prefix in self.ties for prefix in containers(path))
        )

    def add(
        self, name: str, tree: Tree, role: Role, weight: Weight, wanted: str | None = None
    ) -> Slot:
        """Registers a tree under the path of a checkpoint name, or of a better one, once."""
        slot = self.held.get(tree)
        if slot is None:
            path = self.reserve(wanted or name)
            slot = self.slots[path] = self.held[tree] = Slot(path, tree, role, weight)
            self.origins.add(name)
            if path != name:
                self.names[path] = name
        return slot

    def leaves(self, tree: Tree) -> Iterator[Slot]:
        """Iterates over the slots that a tree is made of."""
        slot = self.held.get(tree)
        if slot is not None:
            yield slot
            return
        for child in children(tree):
            yield from self.leaves(child)


def plan_weights(module: Module, *, as_stored: bool = False) -> WeightPlan:
    """Returns the plan of a module; the same for equal modules. Reads no tensor.

    Args:
        module: The module.
        as_stored: Register every weight of the store as it is, under its own name.
    """
    store = module.weights
    plan = WeightPlan()
    used = _used_names(module)
    for name in used:
        if as_stored or store.role(name) is Role.CONST:
            plan.trees[name] = Source(name, store[name])
        else:
            plan.trees[name] = selected_first(derive(name, store[name]))
    for name, wanted in ({} if as_stored else adopted_names(module)).items():
        _adopt(plan, name, wanted)
    sliced = _covered(plan.trees.values())
    for name in used:
        role = store.role(name)
        for leaf in _leaves(plan.trees[name], sliced, plan.held):
            plan.add(_name_of(leaf, name, plan), leaf, role, _weight_of(leaf))
    order = [leaf.path for name in used for leaf in plan.leaves(plan.trees[name])]
    plan.slots = {path: plan.slots[path] for path in dict.fromkeys(order)}
    _tie(store, plan)
    return plan


def _adopt(plan: WeightPlan, name: str, wanted: str) -> None:
    """Registers the matrix of a linear layer as PyTorch holds it, under its name there."""
    held = selected_first(Transpose(plan.trees[name], (1, 0)))
    plan.add(name, held, Role.PARAM, _weight_of(held), wanted)
    plan.trees[name] = Transpose(held, (1, 0))


def _used_names(module: Module) -> list[str]:
    """Returns the stored weights that the graph reads, in the order in which it does."""
    read: dict[str, None] = {}
    for graph in _graphs(module.graph):
        for node in graph:
            read.update(dict.fromkeys(_weights_of(node.inputs)))
        read.update(dict.fromkeys(_weights_of(graph.outputs)))
    return sorted(read, key=lambda name: module.weights.role(name) is Role.CONST)


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph:
        for body in node.bodies:
            yield from _graphs(body)


def _weights_of(values: Iterable[Value | None]) -> Iterator[str]:
    """Iterates over the names of the stored weights among values."""
    for value in values:
        node = None if value is None else value.producer
        if node is not None and node.op is weight_op and node.graph is not None:
            yield node.graph.scope.weights.resolve(node.attrs["name"])


def _weight_of(leaf: Tree) -> Weight:
    return leaf.weight if isinstance(leaf, Source) else DerivedWeight(leaf)


def _name_of(leaf: Tree, stored_name: str, plan: WeightPlan) -> str:
    """Returns the name of the first tensor that a leaf follows from, unless another leaf has it."""
    if leaf in plan.held:
        return plan.held[leaf].path
    first = next(sources(leaf), None)
    if first is None:
        return stored_name
    return stored_name if first.name in plan.origins else first.name


def _leaves(tree: Tree, sliced: set[Tree], held: Mapping[Tree, Slot]) -> Iterator[Tree]:
    """Iterates over what is registered of a tree: below rearrangements that `forward` makes."""
    if tree in held:
        yield tree
        return
    match tree:
        case Transpose(x, _) | Reshape(x, _):
            yield from _leaves(x, sliced, held)
        case Concat(xs, _) if all(_is_moved(x) for x in xs):
            for x in xs:
                yield from _leaves(x, sliced, held)
        case Slice(x, _, _, _, _) if x in sliced:
            yield from _leaves(x, sliced, held)
        case _:
            yield tree


def _is_moved(tree: Tree) -> bool:
    """Whether a tree is one tensor, rearranged."""
    while isinstance(tree, Transpose | Reshape | Slice):
        tree = tree.x
    return isinstance(tree, Source)


def _covered(trees: Iterable[Tree]) -> set[Tree]:
    """Returns the trees of which slices along one axis, taken together, use every position."""
    slices: dict[tuple[Tree, int], list[Slice]] = {}
    for tree in trees:
        pending = [tree]
        while pending:
            item = pending.pop()
            if isinstance(item, Slice) and item.step == 1:
                slices.setdefault((item.x, item.axis), []).append(item)
            pending += children(item)
    covered: set[Tree] = set()
    for (whole, axis), parts in slices.items():
        reached = 0
        for part in sorted(parts, key=lambda each: each.start):
            if part.start > reached:
                break
            reached = max(reached, part.stop)
        if reached == describe(whole)[1][axis]:
            covered.add(whole)
    return covered


def _tie(store: WeightStore, plan: WeightPlan) -> None:
    for alias, target in store.aliases.items():
        tree = plan.trees.get(target)
        slot = None if tree is None else plan.held.get(tree)
        if slot is not None and alias != slot.path:
            path = plan.reserve(alias)
            plan.ties[path] = slot.path
            if path != alias:
                plan.names[path] = alias


def containers(path: str) -> Iterator[str]:
    """Iterates over the dotted names of what holds a path: `a`, `a.b` of `a.b.c`."""
    parts = path.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
