"""The pass `quantize-mixed`: few bits where they cost little, 8 where they cost much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from regraft.ir.errors import TargetError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip, Target
from regraft.passes.quantization.formats import format_of
from regraft.passes.quantization.mixed import Alone, Choice, Forms, assemble, damages
from regraft.passes.quantization.mixed_encoding import encoded_layers, parted
from regraft.passes.quantization.mixed_layer import (
    HIGH,
    Formats,
    Split,
    report,
)
from regraft.passes.quantization.refusals import (
    check_keep,
    check_weights,
    is_kept,
    nothing_to_quantize,
)
from regraft.passes.quantization.sites import Linear, left_in_float, linears, num_by_codes
from regraft.passes.quantization.widening import widen_layers

_HALVINGS = 6
_KINDS = ("bits", "bytes", "drop", "latency")
_SHARED = "several products share the weight, and codes are found and judged for one input"


@dataclass(frozen=True, slots=True)
class QuantizeMixed:
    """Stores weights of linear layers in few bits or in 8, whichever a layer can bear.

    ## What it does
    Every linear layer is encoded in both formats. What few bits of one layer alone do to the
    outputs is measured on samples, and the shared solver takes the choice of least damage within
    the target. Parts of a layer can be in 8 bits by themselves (`split`): its worst outputs, or the
    inputs that can best make up for the errors of the others. Then it becomes two products.

    ## When it applies
    To products with a constant matrix, with samples. A weight that several products share stays in
    float. `latency` needs a way to measure it.

    ## Example
    ```
    %y = matmul(%x, %w)                     // f32[B, 384] by f32[384, 1536]
    ```
    becomes, with a quarter of the inputs in 8 bits:
    ```
    %a = gather(%x, %most) {axis = -1}      // f32[B, 288]
    %b = gather(%x, %few) {axis = -1}       // f32[B, 96]
    %l = matmul(%a, dequantize(%w.low))     // u4, groups of 32
    %h = matmul(%b, dequantize(%w.high))    // u8, groups of 32
    %y = add(%l, %h)
    ```

    ## Exactness
    Lossy.

    ## References
    Zheng et al., MixLLM, 2024; Lee et al., OWQ, 2024.

    Args:
        target: `bits:5` on average, `bytes:12e6` of all weights with their scales, `drop:0.005` of
            the outputs (mean square of their error, relative), or `latency:0.4` of that before.
        weights: The format of few bits: `uint4`, `int4`, `uint2`, `int2`.
        group: Inputs that share a scale.
        method: How the codes of few bits are found: `round`, `search`, `gptq`.
        split: What parts of a layer can be in 8 bits: `outputs`, `inputs` (with `gptq`), `both`, of
            which the one is taken that is measured to lose less, or `none`.
        curves: A file that keeps what was measured, for other targets.
        keep: Weights that stay in float, as names or globs.
    """

    name: ClassVar[str] = "quantize-mixed"
    contract: ClassVar[Contract] = Lossy("output")

    target: str
    weights: str = "uint4"
    group: int = 32
    method: Literal["round", "search", "gptq"] = "gptq"
    split: Literal["none", "outputs", "inputs", "both"] = "both"
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
        check_keep(self.name, module, self.keep)
        check_weights(module, self.keep)
        widen_layers(module, self._kept)
        every = list(linears(module.graph))
        skipped = tuple(self._left(every))
        left = {skip.node for skip in skipped}
        sites = [site for site in every if site.name not in left]
        if not sites:
            shared = [skip for skip in skipped if skip.reason == _SHARED]
            raise nothing_to_quantize(
                self.name, [*shared, *left_in_float(module.graph)], num_by_codes(module.graph)
            )
        formats = Formats(low, self.group, self.method)
        fitted, held = parted(ctx.samples)
        layers = encoded_layers(module, sites, formats, self._splits, ctx)
        source = Alone(module, layers, ctx.activations, held, ctx.work_dir)
        alone = damages(source, self._splits, Path(self.curves) if self.curves else None)
        choice = Choice(source, alone)
        forms, found = _chosen(kind, asked, choice, ctx)
        drop = choice.loss(forms)
        assemble(module, list(layers.values()), forms, None, ctx.work_dir)
        Canonicalize().run(module, ctx)
        parts = [layers[name].part(form) for name, form in forms.items()]
        stats: dict[str, int | float] = {
            "linear-layers": len(layers),
            "in-8-bits": sum(part == 1 for part in parts),
            "in-both": sum(0 < part < 1 for part in parts),
            "average-bits": round(choice.bits(forms), 4),
            "bytes": choice.num_bytes(forms),
            "drop": drop,
            "sum-of-single-drops": sum(alone[name][form] for name, form in forms.items()),
            "samples-for-codes": len(fitted),
            "samples-for-drops": len(held),
        }  # fmt: skip
        return PassResult(
            True, stats, skipped, layers=tuple(report(list(layers.values()), forms)),
            targets=(Target(kind, asked, found, met=found <= asked * (1 + 1e-9)),),
        )  # fmt: skip

    @property
    def _splits(self) -> frozenset[Split]:
        every: frozenset[Split] = frozenset({"outputs", "inputs"})
        if self.split == "both":
            return every
        return frozenset({self.split} & every)

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
        return is_kept(name, self.keep)

    def _left(self, sites: Sequence[Linear]) -> Iterator[Skip]:
        """Yields the weights that stay in float, each once."""
        for name, count in Counter(site.name for site in sites).items():
            if self._kept(name):
                yield Skip(name, "kept by option")
            elif count > 1:
                yield Skip(name, _SHARED)


def _chosen(kind: str, asked: float, choice: Choice, ctx: Context) -> tuple[Forms, float]:
    """Returns the forms of the layers, and what of the target they reach."""
    forms: Forms
    match kind:
        case "bits":
            forms = choice.of_bits(asked)
            return forms, choice.bits(forms)
        case "bytes":
            forms = choice.of_bytes(asked)
            return forms, choice.num_bytes(forms)
        case "drop":
            return _least(choice, asked)
    latency = ctx.latency
    if latency is None:
        raise UsageError(
            "pass `quantize-mixed`: nothing measures latency here", hint="use bits, bytes or drop"
        )
    source = choice.source

    def ratio(forms: Forms) -> float:
        values: dict[Value, Value] = {}
        copy = source.module.clone(values)
        assemble(copy, list(source.layers.values()), forms, values, ctx.work_dir)
        return latency.ratio(source.module, copy)

    return _most(choice, asked, ratio)


def _range(choice: Choice) -> tuple[float, float]:
    """Returns the least and the most bits."""
    layer = next(iter(choice.source.layers.values()))
    return float(layer.low.grid.format.bits), float(HIGH.bits)


def _least(choice: Choice, asked: float) -> tuple[Forms, float]:
    """Returns the choice of fewest bits that is measured within a loss."""
    low, high = _range(choice)
    best = choice.of_bits(high)
    reached = choice.loss(best)
    if reached > asked:
        raise TargetError(
            "pass `quantize-mixed`: the outputs of 8 bits everywhere lose "
            f"{reached:.3g}, {asked:.3g} was asked for",
            hint="allow more, or `keep` the worst layers",
        )
    return _bisected(choice, asked, choice.loss, (best, reached), high, low)


def _most(choice: Choice, asked: float, measure: Callable[[Forms], float]) -> tuple[Forms, float]:
    """Returns the choice of most bits that is measured within a bound."""
    low, high = _range(choice)
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
    choice: Choice,
    asked: float,
    measure: Callable[[Forms], float],
    best: tuple[Forms, float],
    within: float,
    beyond: float,
) -> tuple[Forms, float]:
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
        forms = choice.of_bits(middle)
        found = measure(forms)
        if found <= asked:
            best, within = (forms, found), middle
        else:
            beyond = middle
    return best
