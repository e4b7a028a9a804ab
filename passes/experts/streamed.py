"""Experts made of a block one by one, each time they are read: their copies fill no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, weight
from regraft.ir.graph import Value
from regraft.ir.stacked import StackedWeight
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.experts.made import Experts, disturbed, redrawn, scaled

Array = np.ndarray[Any, Any]
Reader = Callable[[], Array]

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the experts of a block are made of it.

    Args:
        num: How many.
        groups: Shards of a copy.
        changed: What happens to a part of the channels: `drop`, `noise`, or nothing.
        ratio: How many channels.
        noise: Deviation of the noise.
        independent: Whether channels are chosen matrix by matrix.
        seed: Of everything that is drawn.
        gain: Of the last matrix.
        bias_gain: Of its bias.
    """

    num: int
    groups: int
    changed: str
    ratio: float
    noise: float
    independent: bool
    seed: tuple[int, ...]
    gain: float
    bias_gain: float

    def entry(self, name: str, array: Array, expert: int) -> Array:
        """Returns one part of one expert.

        Args:
            name: `up`, `gate`, `down` or one of their biases.
            array: That part of the block: f[F, D], f[O, F] or its bias.
            expert: Which expert.
        """
        shard, groups = expert % self.groups, self.groups
        if groups > 1 and name == "down":
            width = array.shape[1] // groups
            array = array[:, shard * width : (shard + 1) * width]
        elif groups > 1 and name != "down_bias":
            width = len(array) // groups
            array = array[shard * width : (shard + 1) * width]
        made = Experts({name: array[None]}, {})
        if self.changed == "drop":
            made = redrawn(made, self.ratio, self.seed, independent=self.independent, first=expert)
        elif self.changed == "noise":
            made = disturbed(
                made, self.ratio, self.noise, self.seed, independent=self.independent,
                first=expert,
            )  # fmt: skip
        result: Array = scaled(made, self.gain, self.bias_gain).weights[name][0]
        return result

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of a part of all experts, from those of the block."""
        if name == "down":
            return self.num, shape[0], shape[1] // self.groups
        if name == "down_bias":
            return self.num, *shape
        return self.num, shape[0] // self.groups, *shape[1:]


def streamed(block: FfnBlock, recipe: Recipe) -> dict[str, StackedWeight]:
    """Returns the experts of a block by operand of `moe`; `refusal` found nothing.

    They can be read after the block is gone, too.
    """
    parts = block.parts if block.gate is block.up else None
    ours, theirs = (None, None) if parts is None else parts
    layers = {"up": (block.up, ours), "gate": (block.gate, theirs), "down": (block.down, None)}
    found: dict[str, StackedWeight] = {}
    for name, (layer, channels) in layers.items():
        if layer is None:
            continue
        size = layer.out_size if channels is None else len(channels)
        assert isinstance(size, int), "refused otherwise"
        assert isinstance(layer.in_size, int), "refused otherwise"
        content = _reader(layer.weight)
        read = partial(_matrix, content, channels, layer.weight_out, layer.weight_in)
        found[name] = _stack(recipe, name, read, (size, layer.in_size), layer.weight)
        if layer.bias is not None:
            whole = layer.out_size
            assert isinstance(whole, int), "refused otherwise"
            bias = partial(_bias, _reader(layer.bias), channels, whole)
            found[f"{name}_bias"] = _stack(recipe, f"{name}_bias", bias, (size,), layer.bias)
    return found


def _stack(
    recipe: Recipe, name: str, read: Reader, shape: tuple[int, ...], source: Value
) -> StackedWeight:
    def entry(expert: int) -> Array:
        return recipe.entry(name, read(), expert)

    assert source.dtype is not None, "a constant has a type"
    return StackedWeight(source.dtype, recipe.shape(name, shape), entry, (str(source.name),))


def _matrix(read: Reader, channels: range | None, out: int, into: int) -> Array:
    turned = np.moveaxis(read(), (out, into), (0, 1))
    matrix = turned.reshape(turned.shape[:2])
    return matrix if channels is None else matrix[_places(channels)]


def _bias(read: Reader, channels: range | None, size: int) -> Array:
    flat = np.broadcast_to(read().reshape(-1), (size,))
    return flat if channels is None else flat[_places(channels)]


def _places(channels: range) -> slice:
    return slice(channels.start, channels.stop, channels.step)


def _reader(value: Value) -> Reader:
    """Returns what reads a constant: a weight is kept as it is stored, not its content."""
    node, graph = value.producer, value.owner
    if node is not None and node.op is weight and graph is not None:
        reader: Reader = graph.scope.weights[node.attrs["name"]].numpy
        return reader
    array = constant_of(value, _ANY_SIZE)
    assert array is not None, "refused otherwise"
    return partial(np.asarray, array)
