"""Values inside a teacher, for every sample: computed part by part, spilled to files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from regraft.backends.torch.tensors import array_from, tensor_from
from regraft.backends.torch.training.nets import NamedNet
from regraft.ir.errors import UnsupportedError
from regraft.ir.extract import nodes_between
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import DType
from regraft.passes.recovery.data import Batch

Array = np.ndarray[Any, Any]


class HiddenStates:
    """Computes values of a teacher from those that it has: a chain of blocks needs one at a time.

    Args:
        teacher: The module.
        samples: Batches of its inputs.
        max_bytes: Held in memory; more goes to files.
        folder: Where files go; None for a temporary folder.
        device: Where the nets run.
    """

    def __init__(
        self,
        teacher: Module,
        samples: Sequence[Batch],
        max_bytes: int,
        folder: Path | None,
        device: str,
    ) -> None:
        self._teacher = teacher
        self._samples = samples
        self._max_bytes = max_bytes
        self._device = device
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="values-", dir=folder)
        self._held: dict[Value, list[Array | Path]] = {}
        self.num_bytes = 0
        self.num_spilled_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.clear()
        self._folder.cleanup()

    def compute(self, values: Iterable[Value]) -> None:
        """Computes values of the main graph for every sample, from what is held."""
        inputs = set(self._teacher.graph.inputs)
        wanted = [v for v in dict.fromkeys(values) if v not in inputs and v not in self._held]
        if not wanted:
            return
        _, met = nodes_between(frozenset(self._held), wanted)
        known = {f"value {idx}": v for idx, v in enumerate(self._held) if v in met}
        outputs = {str(idx): value for idx, value in enumerate(wanted)}
        net = NamedNet(self._teacher, outputs, known).to(self._device)
        made: dict[Value, list[Array | Path]] = {value: [] for value in wanted}
        for number, sample in enumerate(self._samples):
            batch = {**sample, **{name: self._array(v, number) for name, v in known.items()}}
            moved = {
                name: tensor_from(np.asarray(item)).to(self._device) for name, item in batch.items()
            }
            with torch.no_grad():
                results = net(moved)
            for name, value in outputs.items():
                array = array_from(results[name], _dtype(value))
                made[value].append(self._store(array, f"{len(self._held)}_{name}_{number}"))
        self._held.update(made)

    def keep(self, values: set[Value]) -> None:
        """Lets go of all values but these, and of those that they can be computed from."""
        _, needed = nodes_between(frozenset(self._held), values - self._held.keys())
        for value in [v for v in self._held if v not in values and v not in needed]:
            for item in self._held.pop(value):
                if isinstance(item, Path):
                    item.unlink()
                else:
                    self.num_bytes -= item.nbytes

    def batches(self, names: Mapping[str, Value]) -> StateBatches:
        """Returns the samples with values added, by entry; an iteration reads them anew."""
        return StateBatches(self, names)

    def sample(self, number: int, names: Mapping[str, Value]) -> dict[str, Array]:
        """Returns one sample with values added."""
        found = {name: self._array(value, number) for name, value in names.items()}
        return {**self._samples[number], **found}

    def __len__(self) -> int:
        return len(self._samples)

    def _array(self, value: Value, number: int) -> Array:
        held = self._held.get(value)
        if held is None:
            return np.asarray(self._samples[number][str(value.name)])
        item = held[number]
        # elements that numpy files know no name for are kept as bytes
        return item if not isinstance(item, Path) else _read(item, _dtype(value))

    def _store(self, array: Array, name: str) -> Array | Path:
        if self.num_bytes + array.nbytes <= self._max_bytes:
            self.num_bytes += array.nbytes
            return array
        self.num_spilled_bytes += array.nbytes
        path = Path(self._folder.name) / f"{name}_{self.num_spilled_bytes}.npy"
        np.save(path, np.ascontiguousarray(array)[..., None].view(np.uint8))
        return path


@dataclass(frozen=True, slots=True)
class StateBatches:
    """Batches of a block: samples with the values that it reads and the one that it is fitted to.

    Args:
        states: The values.
        names: Those of interest, by entry.
    """

    states: HiddenStates
    names: Mapping[str, Value]

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self.states)):
            yield self.states.sample(number, self.names)


def _read(path: Path, dtype: DType) -> Array:
    array: Array = np.load(path, mmap_mode="r").view(dtype.numpy)[..., 0]
    return array


def _dtype(value: Value) -> DType:
    if value.dtype is None:
        raise UnsupportedError(f"`{value.name}` has no known element type")
    return value.dtype
