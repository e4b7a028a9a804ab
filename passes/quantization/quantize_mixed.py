"""The pass `quantize-mixed`: few bits where they cost little, 8 where they cost much."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import TargetError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.calibration.statistics import Statistics, gather_statistics
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip, Target
from regraft.passes.quantization.formats import Format, format_of
from regraft.passes.quantization.mixed import (
    HIGH,
    Alone,
    Formats,
    Layer,
    allocate,
    assemble,
    best_within,
    damages,
    encoded_layer,
    layer_errors,
    num_bits,
    num_bytes,
)
from regraft.passes.quantization.row_gains import row_gains
from regraft.passes.quantization.sites import Linear, linears

Array = np.ndarray[Any, Any]
Masks = Mapping[str, Array]

_INPUTS_AT_ONCE = 8
"""Inputs whose second moments are in memory together."""
_JUDGED = 24
"""Samples that damages are measured on."""
_HALVINGS = 6
_KINDS = ("bits", "bytes", "drop", "latency")


@dataclass(frozen=True, slots=True)
class QuantizeMixed:
    """Stores weights of linear layers in few bits or in 8, whichever a layer can bear.

    ## What it does
    Every linear layer is encoded in both formats. What few bits of one layer alone do to the
    outputs is measured on the samples, and the shared solver takes the choice of least damage
    within the target. With `rows`, the worst outputs of a layer can be in 8 bits by themselves: the
    layer becomes two products whose results are joined.

    ## When it applies
    To products with a constant matrix, with samples. `latency` needs a way to measure it.

    ## Example
    ```
    %y = matmul(%x, %w)                     // f32[B, 384] by f32[384, 1536]
    ```
    becomes, with a quarter of the outputs in 8 bits:
    ```
    %a = matmul(%x, dequantize(%w.low))     // u4, groups of 32
    %b = matmul(%x, dequantize(%w.high))    // u8, groups of 32
    %y = gather(concat(%a, %b), %order)
    ```

    ## Exactness
    Lossy.

    ## References
    Zheng et al., MixLLM, 2024.

    Args:
        target: `bits:5` on average, `bytes:12e6` of all weights with their scales, `drop:0.005` of
            the outputs (mean square of their error, relative), or `latency:0.4` of that before.
        weights: The format of few bits: `uint4`, `int4`, `uint2`, `int2`.
        group: Inputs that share a scale.
        method: How the codes of few bits are found: `round`, `search`, `gptq`.
        rows: Whether single outputs of a layer can be in 8 bits.
        curves: A file that keeps what was measured, for other targets.
        keep: Weights that stay in float, as names or globs.
    """

    name: ClassVar[str] = "quantize-mixed"
    contract: ClassVar[Contract] = Lossy("output")

    target: str
    weights: str = "uint4"
    group: int = 32
    method: Literal["round", "search", "gptq"] = "gptq"
    rows: bool = False
    curves: str = ""
    keep: tuple[str, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Encodes, measures, chooses, rewrites.

        Raises:
            UsageError: For options that make no sense, or without samples.
            TargetError: When no choice meets the target.
        """
        kind, asked = self._asked()
        low = format_of(self.weights, "weights")
        if low.bits >= HIGH.bits or not low.is_integer:
            raise UsageError(
                f"pass `quantize-mixed`: weights={low.name} is not below 8 bits of integers",
                hint="use uint4, int4, uint2 or int2",
            )
        if not ctx.samples or ctx.activations is None:
            raise UsageError(
                "pass `quantize-mixed` measures damage on samples, and there are none",
                hint="give inputs with --calibrate",
            )
        Canonicalize().run(module, ctx)
        every = list(linears(module.graph))
        sites = [site for site in every if not self._kept(site.name)]
        skipped = tuple(Skip(s.name, "kept by option") for s in every if self._kept(s.name))
        if not sites:
            return PassResult(False, skipped=skipped)
        layers = self._layers(module, sites, low, ctx)
        source = Alone(module, layers, ctx.activations, ctx.samples[:_JUDGED], ctx.work_dir)
        alone = damages(source, Path(self.curves) if self.curves else None)
        choice = _Choice(layers, alone, self.rows)
        masks, found = _chosen(kind, asked, choice, source, ctx)
        drop = source.loss({name: float(mask.mean()) for name, mask in masks.items()})
        assemble(module, list(layers.values()), masks, None, ctx.work_dir)
        Canonicalize().run(module, ctx)
        errors = sorted(layer_errors(layers, masks), key=lambda each: (-each.error, each.name))
        stats: dict[str, int | float] = {
            "linear-layers": len(layers),
            "in-8-bits": sum(bool(mask.all()) for mask in masks.values()),
            "in-both": sum(bool(mask.any() and not mask.all()) for mask in masks.values()),
            "average-bits": round(choice.bits(masks), 4),
            "bytes": round(sum(num_bytes(layer, _share(masks[n])) for n, layer in layers.items())),
            "drop": drop,
            "sum-of-single-drops": sum(
                alone[n] * (1 - _share(masks[n])) for n in layers if not masks[n].all()
            ),
        }  # fmt: skip
        return PassResult(
            True, stats, skipped, layers=tuple(errors),
            targets=(Target(kind, asked, found, met=found <= asked * (1 + 1e-9)),),
        )  # fmt: skip

    def _asked(self) -> tuple[str, float]:
        kind, _, number = self.target.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if kind not in _KINDS or value <= 0:
            raise UsageError(
                f"pass `quantize-mixed`: `{self.target}` is no target",
                hint="bits:5, bytes:12e6, drop:0.005 or latency:0.4",
            )
        return kind, value

    def _kept(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep)

    def _layers(
        self, module: Module, sites: Sequence[Linear], low: Format, ctx: Context
    ) -> dict[str, Layer]:
        formats = Formats(low, self.group, self.method)
        inputs: dict[Value, list[Linear]] = {}
        for site in sites:
            inputs.setdefault(site.x, []).append(site)
        plain = gather_statistics(module, list(inputs), ctx) if self.rows else {}
        layers: dict[str, Layer] = {}
        for first in range(0, len(inputs), _INPUTS_AT_ONCE):
            chunk = list(inputs)[first : first + _INPUTS_AT_ONCE]
            wanted = chunk if self.method == "gptq" else []
            found: Mapping[Value, Statistics] = gather_statistics(module, chunk, ctx, wanted)
            for x in chunk:
                for site in inputs[x]:
                    if site.name in layers:
                        raise UsageError(
                            f"pass `quantize-mixed`: `{site.name}` is the weight of two products",
                            hint="keep it in float: `keep=NAME`",
                        )
                    gains = row_gains(site, inputs, {**plain, **found}) if self.rows else 1.0
                    layers[site.name] = encoded_layer(site, formats, found[x], gains)
        return layers


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """Choices among encoded layers, by what may be spent.

    Args:
        layers: By name.
        alone: What few bits of each lose.
        rows: Whether single outputs can be in 8 bits.
    """

    layers: Mapping[str, Layer]
    alone: Mapping[str, float]
    rows: bool

    def of_bits(self, bits: float) -> Masks:
        total = sum(layer.low.codes.size for layer in self.layers.values())
        budget = bits * total
        return allocate(self.layers, self.alone, budget, rows=self.rows, in_bits=True)

    def bits(self, masks: Masks) -> float:
        """Returns average bits of a code."""
        total = sum(layer.low.codes.size for layer in self.layers.values())
        return sum(num_bits(self.layers[n], _share(mask)) for n, mask in masks.items()) / total

    @property
    def range(self) -> tuple[float, float]:
        """Least and most bits."""
        least = next(iter(self.layers.values())).low.grid.format.bits
        return float(least), float(HIGH.bits)


def _share(mask: Array) -> float:
    return float(mask.mean())


def _chosen(
    kind: str, asked: float, choice: _Choice, source: Alone, ctx: Context
) -> tuple[Masks, float]:
    """Returns the outputs in 8 bits, and what of the target they reach."""
    layers = choice.layers
    if kind == "bits":
        total = sum(layer.low.codes.size for layer in layers.values())
        masks = best_within(source, choice.alone, asked * total, rows=choice.rows, in_bits=True)
        return masks, choice.bits(masks)
    if kind == "bytes":
        masks = best_within(source, choice.alone, asked, rows=choice.rows, in_bits=False)
        return masks, sum(num_bytes(layer, _share(masks[n])) for n, layer in layers.items())
    if kind == "drop":

        def drop(masks: Masks) -> float:
            return source.loss({name: _share(mask) for name, mask in masks.items()})

        return _least(choice, asked, drop, "the outputs of 8 bits everywhere lose")
    latency = ctx.latency
    if latency is None:
        raise UsageError(
            "pass `quantize-mixed`: nothing measures latency here", hint="use bits, bytes or drop"
        )

    def ratio(masks: Masks) -> float:
        values: dict[Value, Value] = {}
        copy = source.module.clone(values)
        assemble(copy, list(layers.values()), masks, values, ctx.work_dir)
        return latency.ratio(source.module, copy)

    return _most(choice, asked, ratio)


def _least(
    choice: _Choice, asked: float, measure: Callable[[Masks], float], what: str
) -> tuple[Masks, float]:
    """Returns the choice of fewest bits that is measured within a bound."""
    low, high = choice.range
    best = choice.of_bits(high)
    reached = measure(best)
    if reached > asked:
        raise TargetError(
            f"pass `quantize-mixed`: {what} {reached:.3g}, {asked:.3g} was asked for",
            hint="allow more, or `keep` the worst layers",
        )
    return _bisected(choice, asked, measure, (best, reached), high, low)


def _most(choice: _Choice, asked: float, measure: Callable[[Masks], float]) -> tuple[Masks, float]:
    """Returns the choice of most bits that is measured within a bound."""
    low, high = choice.range
    best = choice.of_bits(low)
    reached = measure(best)
    if reached > asked:
        raise TargetError(
            f"pass `quantize-mixed`: {low:g} bits everywhere take {reached:.3g} of the latency, "
            f"{asked:.3g} was asked for",
            hint="allow more; products of many rows are faster in int8 (pass `quantize`)",
        )
    return _bisected(choice, asked, measure, (best, reached), low, high)


def _bisected(
    choice: _Choice,
    asked: float,
    measure: Callable[[Masks], float],
    best: tuple[Masks, float],
    within: float,
    beyond: float,
) -> tuple[Masks, float]:
    """Returns the choice nearest to `beyond` bits that is measured within a bound, and its measure.

    Args:
        choice: What of each number of bits is best.
        asked: The bound.
        measure: What is held against it.
        best: The choice of `within` bits, which keeps the bound, and its measure.
        within: Bits that keep it.
        beyond: Bits that may not.
    """
    for _ in range(_HALVINGS):
        middle = (within + beyond) / 2
        masks = choice.of_bits(middle)
        found = measure(masks)
        if found <= asked:
            best, within = (masks, found), middle
        else:
            beyond = middle
    return best
