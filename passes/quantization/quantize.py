"""The pass `quantize`: weights, and where asked the inputs of linear layers, as small integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.heap import return_free_memory
from regraft.ir.module import Module
from regraft.ir.ops import conv
from regraft.passes.calibration.statistics import Statistics, check_samples, gather_statistics
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.experts.codes import store_in_codes
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult, Skip
from regraft.passes.quantization.convolutions import Convolved, quantize_convolutions
from regraft.passes.quantization.formats import INT8, UINT8, Format, format_of
from regraft.passes.quantization.histogram import Criterion
from regraft.passes.quantization.layers import Plan, rewrite_readers, sharing_weights
from regraft.passes.quantization.methods import Method
from regraft.passes.quantization.refusals import (
    check_keep,
    check_weights,
    is_kept,
    nothing_to_quantize,
)
from regraft.passes.quantization.rounded_inputs import FloatInputs, InputsInOrder
from regraft.passes.quantization.sites import (
    Linear,
    left_in_float,
    linears,
    num_by_codes,
)
from regraft.passes.quantization.table_codes import round_tables
from regraft.passes.quantization.widening import widen_layers

_GROUP_BELOW_8_BITS = 32

_GROUP_BY_FLOATS = 128
"""The kernel for 8-bit weights by inputs in float takes groups; what has none is rewritten to it by
ONNX Runtime, in groups of 32 that the file does not speak of."""

_TAIL = 8
"""Channels in float beside ranges per row: on a sentence encoder the worst cosine of 118 sentences
is 0.9954 without, 0.9990 with 8, 0.9992 with 16, and each 8 take 5 % of the speed."""

_SMOOTH = 0.65
"""On the same encoder, static ranges: mean cosine 0.9935 without, 0.9985 with it."""


_NEED_MOMENTS = ("gptq", "flexround")

_LEFT_OUT = (0.0, 0.25, 0.5, 1.0)
_SILENT = "what it reads is 0 on all samples: no range can be found"
_BEYOND = "with it the outputs change by more than `budget` allows"


@dataclass(frozen=True, slots=True)
class Quantize:
    """Stores weights as small integers, and rounds the inputs of linear layers to 8 bits.

    ## What it does
    The weight of every linear layer becomes integer codes with a scale per output, or per group of
    inputs below 8 bits. With 8-bit weights the input is rounded too, so that the product runs in
    integers: in one range found on samples (`static`), in a range per row (`token`), or in a range
    that each run finds (`dynamic`). A few channels whose numbers are far larger than the others'
    stay in float beside it (`tail`), and large channels can be scaled down before rounding
    (`smooth`). What rounding shifts on average is added to the bias.

    ## When it applies
    To products with a constant matrix, to tables that are read by index, and to experts (`moe`: the
    weights alone, in blocks); a weight that several layers read is encoded once. `static` and
    `gptq` need samples. The module is canonicalized before. Nothing to quantize is an error.

    ## Example
    ```
    %y = matmul(%x, %w)                     // f32[B, 384] by f32[384, 1536]
    ```
    becomes
    ```
    %q = quantize(%x, 0.031, 121)           // u8
    %d = dequantize(%q, 0.031, 121)
    %v = dequantize(%w.codes, %w.scales) {axis = 1}
    %y = matmul(%d, %v)
    ```

    ## Exactness
    Lossy. `static` and `token` are batch-invariant: a row's result does not depend on which rows
    it is run with. `dynamic` is not.

    ## References
    Frantar et al., GPTQ, 2022; Xiao et al., SmoothQuant, 2023.

    Args:
        weights: Format of weights: `int8`, `int7` (8 bits for CPUs without VNNI), `uint8` in
            groups, `int4`, `uint4`, `int3`, `uint3`, `int2`, `uint2`; values of a table, which are
            smaller on disk and no faster: `nf4`, `fp4`, `mxfp4`, `nvfp4`, `fp8_e4m3`, `fp8_e5m2`.
        activations: How inputs are rounded; `auto` is `token` for 8-bit weights, which is
            accurate, else `none`. `static` is faster, and what samples did not show saturates.
        method: How codes are found: `round`, `search` of ranges, `hqq` (from the weights alone),
            `gptq`, `flexround`; `auto` is `gptq` below 8 bits where there are samples.
        group: Inputs that share a scale; 0 means all for 8 bits by rounded inputs, 128 for 8 bits
            by inputs in float, 32 below.
        tail: Channels of every input that stay in float; `none` is 8 for `token`, where samples
            can be run, and 0 for `static`.
        smooth: Strength, 0 to 1, of scaling large channels down before a `static` range; `none` is
            0.65.
        embeddings: Format of tables read by index: `int8`, or `none`.
        convolutions: `int8`: in 8 bits where measured costs say that it is faster, which needs
            samples, 8-bit weights and rounded inputs; or `none`.
        ranges: How the ranges of convolutions are found: `minmax`, `percentile` (0.01 % of the
            numbers on either side are cut off), `mse`, `entropy`.
        budget: What 8 bits may change in networks with convolutions, as measured on the samples:
            the share of items whose decision changes (the largest score, a probability beyond one
            half), and of other outputs four times that, relative. The worst layers stay in float;
            1 keeps none.
        keep: Weights that stay in float, as names or globs.
    """

    name: ClassVar[str] = "quantize"
    contract: ClassVar[Contract] = Lossy("output")

    weights: str = "int8"
    activations: Literal["auto", "static", "token", "dynamic", "none"] = "auto"
    method: Literal["auto", "round", "search", "hqq", "gptq", "flexround"] = "auto"
    group: int = 0
    tail: int | None = None
    smooth: float | None = None
    embeddings: Literal["int8", "none"] = "int8"
    convolutions: Literal["int8", "none"] = "int8"
    ranges: Criterion = "percentile"
    budget: float = 0.005
    keep: tuple[str, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates, encodes, rewrites.

        Raises:
            UsageError: For options that do not go together, or without the samples they need.
            TargetError: When there is nothing to quantize.
        """
        fmt = format_of(self.weights, "weights")
        mode = self._mode(fmt)
        method = self._method(fmt, ctx)
        if mode != "none" or method in _NEED_MOMENTS:
            ctx = self._with_samples(module, ctx)
        Canonicalize().run(module, ctx)  # a transposed weight is a constant then
        check_keep(self.name, module, self.keep)
        if ctx.samples:
            check_weights(module, self.keep)
        convolved = Convolved(skipped=_float_convolutions(module))
        if self.convolutions == "int8" and _is_int8(fmt) and mode != "none":
            convolved = quantize_convolutions(
                module, ctx, fmt, self.ranges, self._kept, self.budget if self.budget < 1 else None
            )
        widen_layers(module, self._kept)
        made = self._within(module, ctx, (fmt, mode, method), convolved)
        experts, in_float = store_in_codes(
            module, fmt, self._group(fmt, "none"), method, self._kept, ctx.work_dir
        )
        every, sites, skipped = made.every, made.sites, made.skipped
        in_tables: list[LayerError] = []
        small: list[Skip] = []
        if self.embeddings == "int8":
            in_tables, small = round_tables(module, self._kept, ctx.work_dir, made.num_numbers)
        num_tables = len(in_tables)
        layers = [*convolved.layers, *made.layers, *experts, *in_tables]
        changed = bool(sites or num_tables or convolved.num_int8 or experts)
        left = [*left_in_float(module.graph), *convolved.skipped, *in_float]
        if not changed and not every and not convolved.num_float:
            raise nothing_to_quantize(self.name, left, num_by_codes(module.graph))
        if changed:
            Canonicalize().run(module, ctx)
        layers.sort(key=lambda layer: (-layer.error, layer.name))
        stats: dict[str, int | float] = {
            "linear-layers": len(sites), "tables": num_tables, "bits": fmt.bits,
            "samples": len(ctx.samples),
        }  # fmt: skip
        if convolved.num_int8 or convolved.num_float:
            stats["convolutions"] = convolved.num_int8
            stats["convolutions-in-float"] = convolved.num_float
            stats["share-of-convolutions"] = round(convolved.share, 3)
            stats["share-of-1x1-convolutions"] = round(convolved.pointwise_share, 3)
            stats["budget-used"] = round(convolved.damage, 3)
            if convolved.speed:
                stats["speed-of-convolutions"] = round(convolved.speed, 3)
        if experts:
            stats["matrices-of-experts"] = len(experts)
        if layers:
            stats["worst-error"] = round(layers[0].error, 6)
        skipped += [*left, *small]
        return PassResult(changed, stats, tuple(skipped), layers=tuple(layers))

    def _within(
        self, module: Module, ctx: Context, how: tuple[Format, str, Method], convolved: Convolved
    ) -> _Linears:
        """Rewrites linear layers; of a network of convolutions, those that keep to the budget.

        What the worst layers change is left out until the decisions stay: a quarter of the layers,
        half of them, all.
        """
        if convolved.judge is None or not any(True for _ in linears(module.graph)):
            return self._linears(module, ctx, how, frozenset())
        before = module.clone()
        worst: list[str] = []
        for share in _LEFT_OUT:
            if share:
                module.restore(before)
            count = math.ceil(share * len(worst))
            made = self._linears(module, ctx, how, frozenset(worst[:count]))
            if not share:
                found = sorted(made.layers, key=lambda layer: -layer.error)
                worst = [layer.name for layer in found]
            convolved.damage = convolved.judge.damage(module) if made.sites else convolved.damage
            if convolved.damage <= 1 or not made.sites:
                break
        if share:
            module.warnings.append(
                f"quantize: {count} of {len(worst)} linear layers stay in float: with them the "
                "outputs change by more than `budget` allows on the samples; `budget=1` allows all"
            )
        return made

    def _linears(
        self, module: Module, ctx: Context, how: tuple[Format, str, Method], left: frozenset[str]
    ) -> _Linears:
        """Rewrites the linear layers that are neither kept nor left out."""
        fmt, mode, method = how

        def stays(name: str) -> bool:
            return name in left or self._kept(name)

        every = list(linears(module.graph))
        sites = [site for site in every if not stays(site.name)]
        skipped = [
            Skip(site.name, "kept by option" if self._kept(site.name) else _BEYOND)
            for site in every if stays(site.name)
        ]  # fmt: skip
        by_input: dict[Value, list[Linear]] = {}
        for site in sites:
            by_input.setdefault(site.x, []).append(site)
        found: Mapping[Value, Statistics] = {}
        inputs = list(by_input)
        needed = mode == "static"
        in_order = method in _NEED_MOMENTS
        if inputs and not in_order and (needed or (ctx.samples and ctx.activations)):
            found = gather_statistics(module, inputs, ctx)
        if needed:
            silent = [x for x in inputs if found[x].is_silent]
            skipped += [Skip(site.name, _SILENT) for x in silent for site in by_input.pop(x)]
            sites = [site for site in sites if site.x in by_input]
        plan = Plan(
            fmt,
            mode,
            method,
            self._group(fmt, mode),
            self._num_tail(mode),
            self._strength(mode),
            ctx.work_dir,
        )
        layers: list[LayerError] = []
        if in_order and inputs:
            check_samples(ctx)
        before = FloatInputs(module, ctx) if in_order and inputs else None
        running = InputsInOrder(module, ctx, with_moments=True) if in_order and inputs else None
        for group in sharing_weights(by_input):
            seen = found
            if before is not None and running is not None:
                readers = {x: by_input[x][0] for x in group}
                found, seen = before.statistics(readers), running.statistics(readers)
                return_free_memory()
            layers += rewrite_readers(module, {x: by_input[x] for x in group}, plan, seen, found)
        return _Linears(every, sites, skipped, layers)

    def _with_samples(self, module: Module, ctx: Context) -> Context:
        """Returns a context with generated samples where ranges need some and none were given."""
        if ctx.samples or not ctx.probes or ctx.activations is None:
            return ctx
        module.warnings.append(
            f"quantize: ranges were found on {len(ctx.probes)} synthetic samples; "
            "`--calibrate DATA` gives real ones"
        )
        return replace(ctx, samples=ctx.probes)

    def _group(self, fmt: Format, mode: str) -> int:
        """Returns how many inputs share a scale, 0 for all."""
        if fmt.bits == INT8.bits and fmt.is_integer and mode == "none":
            return self.group or _GROUP_BY_FLOATS
        if fmt.bits == INT8.bits:
            return self.group
        return self.group or fmt.block or _GROUP_BELOW_8_BITS

    def _num_tail(self, mode: str) -> int:
        if mode not in ("static", "token"):
            return 0
        default = _TAIL if mode == "token" else 0
        return default if self.tail is None else self.tail

    def _strength(self, mode: str) -> float:
        if mode != "static":
            return 0.0
        return _SMOOTH if self.smooth is None else self.smooth

    def _mode(self, fmt: Format) -> str:
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(f"pass `quantize`, option `smooth`: {self.smooth:g} is not in 0 to 1")
        if self.budget <= 0:
            raise UsageError(f"pass `quantize`, option `budget`: {self.budget:g} is not above 0")
        if (self.tail or 0) < 0 or self.group < 0:
            raise UsageError("pass `quantize`: `tail` and `group` are not negative")
        if fmt is UINT8 and not self.group:
            raise UsageError(
                "pass `quantize`: weights=uint8 with a scale per output has no kernel",
                hint="use weights=int8, or give `group` (128) for one row at a time",
            )
        if self.activations == "auto":
            return "token" if _is_int8(fmt) and not self.group else "none"
        if self.activations != "none" and (not _is_int8(fmt) or self.group):
            raise UsageError(
                f"pass `quantize`: activations={self.activations} needs 8-bit weights with a "
                "scale per output",
                hint="use weights=int8 and leave `group` out, or activations=none",
            )
        return self.activations

    def _method(self, fmt: Format, ctx: Context) -> Method:
        if self.method != "auto":
            return self.method
        return "gptq" if fmt.bits < INT8.bits and ctx.samples else "search"

    def _kept(self, name: str) -> bool:
        return is_kept(name, self.keep)


def _float_convolutions(module: Module) -> list[Skip]:
    """Says that convolutions stay as they are, which is so unless the options take them."""
    count = sum(node.op is conv.conv for node in module.graph)
    reason = "they take weights=int8, rounded inputs and convolutions=int8"
    return [Skip(f"{count} convolutions", reason)] if count else []


@dataclass(frozen=True, slots=True)
class _Linears:
    """What became of the linear layers: all there are, those rewritten, the others, the errors."""

    every: list[Linear]
    sites: list[Linear]
    skipped: list[Skip]
    layers: list[LayerError]

    @property
    def num_numbers(self) -> int:
        """Of all their weights."""
        return sum(size * width for size, width in (site.sizes for site in self.every))


def _is_int8(fmt: Format) -> bool:
    """Whether products with such weights run in integers of 8 bits."""
    return fmt.is_integer and fmt.bits == INT8.bits
