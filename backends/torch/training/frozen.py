"""What training does not change: values before the first trained weight, and those of teachers.

The module is cut where trained weights begin. What lies before is computed without gradients, and
once per batch where batches come back; training runs the rest alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from regraft.backends.torch.training.nets import NamedNet
from regraft.ir.constants import weight
from regraft.ir.derive import source_names
from regraft.ir.extract import nodes_between
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.types import TensorType
from regraft.passes.recovery.fading import rising_shares

Key = tuple[str, int]
"""What a batch is known by: the data that it is from, and its number there."""


def frozen_values(module: Module, outputs: Iterable[Value], trained: frozenset[str]) -> list[Value]:
    """Returns the values where trained weights begin: `outputs` follow from them and those weights.

    Nothing for a module whose inputs meet trained weights at once, or that hands lists over. Cost:
    O(nodes).

    Args:
        module: The module.
        outputs: Values of its main graph.
        trained: Names of checkpoint tensors.
    """
    wanted = list(outputs)
    trained = trained | frozenset(rising_shares(module))  # other numbers in every step
    nodes, _ = nodes_between(frozenset(), wanted)
    varying = set(module.graph.inputs)  # what does not vary is no part of a batch
    changing: set[Value] = set()
    for node in nodes:
        if not varying.isdisjoint(_operands(node)):
            varying.update(node.outputs)
        is_drawn = Trait.PURE not in node.op.traits and Trait.CONSTANT not in node.op.traits
        if is_drawn or _reads(module, node, trained) or not changing.isdisjoint(_operands(node)):
            changing.update(node.outputs)
    inside = [node for node in nodes if not changing.isdisjoint(node.outputs)]
    read = [value for node in inside for value in _operands(node)]
    found = [
        value
        for value in dict.fromkeys([*read, *wanted])
        if value in varying and value not in changing and value.producer is not None
    ]
    return found if all(isinstance(value.type, TensorType) for value in found) else []


def _operands(node: Node) -> list[Value]:
    return [value for value in node.inputs if value is not None]


def _reads(module: Module, node: Node, names: frozenset[str]) -> bool:
    """Returns whether a node is one of the weights, or its bodies have one."""
    inner = (each for body in node.bodies for each in body.walk())
    for each in (node, *inner):
        if each.op is weight:
            name = module.weights.resolve(each.attrs["name"])
            # content that is held as it is may still say what it was made of
            if not names.isdisjoint((name, *source_names(name, module.weights[name]))):
                return True
    return False


class FrozenValues:
    """Adds to batches what nets give for them; what was computed for a batch is kept.

    Args:
        nets: Nets whose results have different names.
        max_bytes: Held in memory; more goes to files.
        folder: Where files go; None for a temporary folder.
    """

    def __init__(self, nets: Sequence[NamedNet], max_bytes: int, folder: Path | None) -> None:
        self._nets = nets
        self._max_bytes = max_bytes
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="frozen-", dir=folder)
        self._held: dict[Key, dict[str, Tensor] | Path] = {}
        self.num_bytes = 0
        self.num_computed = 0

    def add_to(self, key: Key | None, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the batch with the values; without a key, nothing is kept."""
        if not self._nets:
            return dict(batch)
        held = None if key is None else self._held.get(key)
        if held is None:
            self.num_computed += 1
            values: dict[str, Tensor] = {}
            with torch.no_grad():
                for net in self._nets:
                    values |= net(batch)
            if key is not None:
                self._held[key] = self._stored(values, len(self._held))
        elif isinstance(held, Path):
            values = torch.load(held, weights_only=True)
        else:
            values = held
        devices = {tensor.device for tensor in batch.values()}
        device = devices.pop() if devices else torch.device("cpu")
        return {**batch, **{name: tensor.to(device) for name, tensor in values.items()}}

    def close(self) -> None:
        """Forgets everything and removes the files."""
        self._held.clear()
        self._folder.cleanup()

    def _stored(self, values: Mapping[str, Tensor], number: int) -> dict[str, Tensor] | Path:
        # a value of another batch's storage, such as a view, is copied out of it
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in values.items()}
        size = sum(tensor.nbytes for tensor in own.values())
        if self.num_bytes + size <= self._max_bytes:
            self.num_bytes += size
            return own
        path = Path(self._folder.name) / f"{number}.pt"
        torch.save({name: tensor.clone() for name, tensor in own.items()}, path)
        return path
