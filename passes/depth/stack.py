"""The layers of a module by number, which of them can go, and what they are judged on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import prod

from regraft.ir.constants import weight
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.protocol import ActivationSource, Context, Samples

_LOOKED = 8
"""Samples that layers are judged on."""


def layers_of(module: Module) -> list[Layer]:
    """Returns the repeated layers of the main graph, numbered from 0 over all stacks in order."""
    return [layer for group in repeated_layers(module.graph) for layer in group.layers]


def check_numbers(who: str, numbers: Iterable[int], layers: Sequence[Layer]) -> None:
    """Checks that layers of these numbers are there.

    Raises:
        UsageError: Naming those that are not, or when there is no number.
    """
    given = list(numbers)
    unknown = [number for number in given if not 0 <= number < len(layers)]
    if unknown or not given:
        raise UsageError(
            f"{who}, option `layers`: no layer {', '.join(map(str, unknown))}"
            if unknown
            else f"{who}, option `layers`: names no layer",
            hint=f"the model has {len(layers)} repeated layers"
            + (f", 0 to {len(layers) - 1}" if layers else ""),
        )


def check_removable(who: str, layer: Layer, number: int) -> None:
    """Checks that what enters a layer can take the place of its result.

    Raises:
        UnsupportedError: When it cannot.
    """
    if layer.input.type != layer.output.type:
        raise UnsupportedError(
            f"{who}: layer {number} turns {layer.input.type} into {layer.output.type}",
            hint="only a layer that keeps the type of the stream can be left out",
        )
    given = next(_given(layer), None)
    if given is not None:
        raise UnsupportedError(
            f"{who}: layer {number} gives `{given.name}` to the rest of the model",
            hint="layers with a cache of their own cannot be removed",
        )


def removable(layers: Sequence[Layer]) -> dict[int, Layer]:
    """Returns the layers that can go, by number."""
    return {
        number: layer
        for number, layer in enumerate(layers)
        if layer.input.type == layer.output.type and next(_given(layer), None) is None
    }


def bypass(layers: Sequence[Layer], numbers: Iterable[int]) -> None:
    """Lets what enters layers go on in place of their results, in place."""
    # from the last: a layer that stays is then fed what entered those removed before it
    for number in sorted(numbers, reverse=True):
        layers[number].output.replace_all_uses_with(layers[number].input)


def without(module: Module, numbers: Iterable[int]) -> Module:
    """Returns a copy without layers."""
    copy = module.clone()
    bypass(layers_of(copy), numbers)
    return copy


def num_parameters(layer: Layer) -> int:
    """Returns how many numbers the weights have that the layer alone reads."""
    inside = set(layer.nodes)
    sizes = {
        value.producer.attrs["name"]: prod(
            size for size in value.shape or () if isinstance(size, int)
        )
        for value in layer.constants
        if value.producer is not None
        and value.producer.op is weight
        and all(user in inside for user in value.users)
    }
    return sum(sizes.values())


def judged_on(ctx: Context, who: str, instead: str) -> tuple[ActivationSource, Samples]:
    """Returns what layers are judged on, and what runs it.

    Args:
        ctx: Gives samples, training data, or generated samples.
        who: What asks, for errors.
        instead: What may be given in their place.

    Raises:
        UsageError: Without samples, or a runtime to run them.
    """
    data = ctx.samples or (() if ctx.training is None else islice(ctx.training.batches(), _LOOKED))
    samples = list(data or ctx.probes)[:_LOOKED]
    if ctx.activations is None or not samples:
        raise UsageError(
            f"{who}: layers are chosen on samples, and there are none",
            hint=f"give `--calibrate DATA`, or {instead}",
        )
    return ctx.activations, samples


def _given(layer: Layer) -> Iterator[Value]:
    """Yields what a layer computes from the stream and others read, its result aside."""
    inside = set(layer.nodes)
    reached: set[Value] = {layer.input}
    for node in sorted(inside, key=lambda node: node.order):
        if reached.isdisjoint(v for v in node.inputs if v is not None):
            continue
        reached.update(node.outputs)
        for value in node.outputs:
            if value is not layer.output and _is_read_outside(value, inside):
                yield value


def _is_read_outside(value: Value, inside: set[Node]) -> bool:
    return value.is_output or any(user not in inside for user in value.users)
