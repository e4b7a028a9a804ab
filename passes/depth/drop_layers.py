"""The pass `drop-layers`: removes layers of a stack of equal ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.analysis.position_mask import mask_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.protocol import Context, Contract, Lossy, PassResult

_LOOKED = 8
"""Samples that layers are chosen on."""


@dataclass(frozen=True, slots=True)
class DropLayers:
    """Removes layers of a stack of equal ones: what entered a layer goes on as it is.

    ## What it does
    Finds repeated layers along the residual stream by their structure, numbers them from 0 in
    order (over all stacks, the encoder's before the decoder's), and replaces the result of each
    named layer by its input. Weights that nothing reads any more are removed. With `count`, the
    layers that turn the stream least are removed: those of the smallest mean of 1 - cos(what
    enters, what leaves) over the positions of the samples that count.

    ## When it applies
    To layers whose input and result have the same type, and which hand nothing but the stream to
    the rest of the model: a layer with a cache of its own is refused.

    ## Example
    ```
    %h1 = layer(%h0)
    %h2 = layer(%h1)
    %h3 = layer(%h2)
    ```
    with `drop-layers{layers=[1]}` becomes
    ```
    %h1 = layer(%h0)
    %h3 = layer(%h1)
    ```

    ## Exactness
    Lossy. The pass `recover` regains a part.

    ## References
    Fan et al., Reducing Transformer Depth on Demand with Structured Dropout, 2020; Zhang et al.,
    LAPTOP-Diff, 2024; Men et al., ShortGPT, 2024.

    Args:
        layers: Numbers of the layers to remove, from 0.
        count: How many to remove, in place of their numbers.
        mask: Input that is nonzero where positions count, where the module has it.
    """

    name: ClassVar[str] = "drop-layers"
    contract: ClassVar[Contract] = Lossy("output")

    layers: tuple[int, ...] = ()
    count: int = 0
    mask: str = "attention_mask"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Removes the layers.

        Raises:
            UsageError: For numbers that no layer has.
            UnsupportedError: When a layer hands more than the stream to the rest of the model.
        """
        found = [layer for group in repeated_layers(module.graph) for layer in group.layers]
        numbers = set(self.layers)
        stats: dict[str, int | float] = {}
        if self.count:
            if self.layers:
                raise UsageError("pass `drop-layers`: give `layers` or `count`, not both")
            recorded = ctx.replay.get(self.name, {}).get("layers")
            scores = {} if recorded else _influences(module, found, self.mask, ctx)
            stats = {f"influence-{number}": score for number, score in scores.items()}
            least = sorted(scores, key=lambda number: (scores[number], number))
            numbers = set(recorded or least[: self.count])
            if len(numbers) != self.count:
                raise UsageError(
                    f"pass `drop-layers`, option `count`: {self.count} of {len(scores)} layers "
                    "that can be removed"
                )
        chosen = sorted(numbers, reverse=True)
        unknown = [number for number in chosen if not 0 <= number < len(found)]
        if unknown or not chosen:
            raise UsageError(
                f"pass `drop-layers`, option `layers`: no layer {', '.join(map(str, unknown))}"
                if unknown
                else "pass `drop-layers`, option `layers`: names no layer",
                hint=f"the model has {len(found)} repeated layers"
                + (f", 0 to {len(found) - 1}" if found else ""),
            )
        for number in chosen:
            _check(found[number], number)
        # from the last: a layer that stays is then fed what entered those removed before it
        for number in chosen:
            layer = found[number]
            layer.output.replace_all_uses_with(layer.input)
        removed = drop_dead_code(module)
        return PassResult(
            True,
            {
                "layers-before": len(found),
                "layers": len(found) - len(chosen),
                "removed": removed,
                **stats,
            },
            decisions={"layers": sorted(chosen)},
        )


def _influences(module: Module, found: list[Layer], mask: str, ctx: Context) -> dict[int, float]:
    """Returns how much each layer that can be removed turns the stream, by its number.

    Source: Men et al., ShortGPT, 2024, eq. 1 (block influence).

    Raises:
        UsageError: Without samples that have positions which count, or a runtime to run them.
    """
    data = ctx.samples or (() if ctx.training is None else islice(ctx.training.batches(), _LOOKED))
    samples = list(data or ctx.probes)[:_LOOKED]
    if ctx.activations is None or not samples:
        raise UsageError(
            "pass `drop-layers`, option `count`: layers are chosen on samples, and there are none",
            hint="give `--calibrate DATA`, or name the `layers`",
        )
    removable = {
        number: layer
        for number, layer in enumerate(found)
        if layer.input.type == layer.output.type and next(_given(layer), None) is None
    }
    values = dict.fromkeys(v for each in removable.values() for v in (each.input, each.output))
    masks = {n: mask_of(module, layer.output, mask) for n, layer in removable.items()}
    turns: dict[int, list[np.ndarray]] = {number: [] for number in removable}
    given = ctx.activations.activations(module, list(values), samples)
    for sample, states in zip(samples, given, strict=True):
        for number, layer in removable.items():
            turned = _turned(states[layer.input], states[layer.output])
            own = masks[number]
            counts = slice(None) if own is None else np.asarray(sample[own]) != 0
            turns[number].append(turned[counts].ravel())
    if not all(sum(map(len, each)) for each in turns.values()):
        raise UsageError(
            f"pass `drop-layers`, option `mask`: no position of the samples counts in `{mask}`"
        )
    return {number: float(np.concatenate(each).mean()) for number, each in turns.items()}


def _turned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns 1 - cos of the vectors along the last axis, f64[...]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    turned: np.ndarray = 1 - (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return turned


def _check(layer: Layer, number: int) -> None:
    if layer.input.type != layer.output.type:
        raise UnsupportedError(
            f"pass `drop-layers`: layer {number} turns {layer.input.type} into {layer.output.type}",
            hint="only a layer that keeps the type of the stream can be left out",
        )
    given = next(_given(layer), None)
    if given is not None:
        raise UnsupportedError(
            f"pass `drop-layers`: layer {number} gives `{given.name}` to the rest of the model",
            hint="layers with a cache of their own cannot be removed",
        )


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
