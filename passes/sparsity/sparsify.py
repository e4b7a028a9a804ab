"""The pass `sparsify`: numbers of weights become zero, in a pattern or anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.calibration.moments import calibration_samples, gather_moments
from regraft.passes.calibration.output_error import OutputError
from regraft.passes.calibration.tied import Matrices, matrices_of
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult, Skip
from regraft.passes.recovery.zeros import keep_zeros
from regraft.passes.sparsity.allocate import (
    MAX_MEASURED,
    Allocation,
    Rates,
    Scorer,
    exponents_of,
    global_rates,
    measured_rates,
    spectral_rates,
)
from regraft.passes.sparsity.masks import Pattern, Scope, pattern_of
from regraft.passes.sparsity.methods import Layer, Method, sparse

Array = np.ndarray[Any, Any]

_WHO = "pass `sparsify`"

_MAX_MOMENT_BYTES = 1 << 30
"""Second moments that are held at a time; layers of wider models are taken several at a time."""


@dataclass(frozen=True, slots=True)
class Sparsify:
    """Sets numbers of weights to zero: 2 of every 4, or a fraction anywhere.

    ## What it does
    Every constant that products multiply by becomes sparse. `magnitude` drops the smallest numbers
    of a layer, `wanda` those with the smallest product of number and norm of the input. `sparsegpt`
    drops what can be made up for best, and changes what stays so that it does. With `pattern=2:4`,
    two of every four consecutive inputs of an output stay (channels at one tap, of a convolution).
    Without, `allocation` says how sparse each layer becomes, for the same number of zeros:
    `uniform`, `global` (one threshold on the scores of all), `spectral` (in the proportions of the
    weights' spectra), or `dp` (the budget solver, on the error of the outputs measured layer by
    layer). The zeros are recorded: `recover` leaves them zero.

    ## When it applies
    To matrix products, `gemm`, convolutions and transposed ones with a float constant. A constant
    that several of them read is one layer; one that anything else reads (a tied table of
    embeddings) is left alone. `wanda` and `sparsegpt` need samples.

    ## Example
    ```
    %y = matmul(%x, %w)                     // %w = [[3, 1], [1, 2], [2, 4], [4, 1]]
    ```
    with `sparsify{pattern=2:4,method=magnitude}` becomes
    ```
    %y = matmul(%x, %w)                     // %w = [[3, 0], [0, 2], [0, 4], [4, 0]]
    ```

    ## Exactness
    Lossy. The pass `recover` regains a part.

    ## References
    Frantar & Alistarh, SparseGPT, 2023; Sun et al., Wanda, 2023; Xu et al., Efficient Joint
    Optimization of Layer-Adaptive Weight Pruning, 2023; Hu et al., Eigenspectrum Analysis of Neural
    Networks without Aspect Ratio Bias, 2025.

    Args:
        pattern: `unstructured`, or N:M for N of every M consecutive numbers.
        rate: Fraction of the numbers that becomes zero, without N:M.
        method: How numbers are chosen; `auto` is `sparsegpt` where there are samples, else
            `magnitude`.
        allocation: How sparse each layer becomes, without N:M.
        scope: Whether `magnitude` and `wanda` compare all numbers of a layer, or those of each
            output, as Wanda was published: on a sentence encoder, half of the numbers gone, the
            mean error of its layers is 0.164 and 0.173.
        keep: Weights that stay as they are, as names or globs.
        curves: File that keeps what `dp` measures.
    """

    name: ClassVar[str] = "sparsify"
    contract: ClassVar[Contract] = Lossy("output")

    pattern: str = "unstructured"
    rate: float = 0.5
    method: Literal["auto", "magnitude", "wanda", "sparsegpt"] = "auto"
    allocation: Allocation = "uniform"
    scope: Scope = "layer"
    keep: tuple[str, ...] = ()
    curves: str | None = None

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Chooses rates, then numbers, layer by layer as their inputs are by then.

        Raises:
            UsageError: For options that do not go together, or without the samples they need.
        """
        pattern = self._pattern()
        method = self._method(ctx)
        items, skipped = matrices_of(module, self.keep)
        if pattern.group:
            items, uneven = _even(items, pattern)
            skipped += uneven
        rates = self._rates(module, items, method, ctx)
        errors: list[LayerError] = []
        changed: list[str] = []
        for chunk in _chunks(range(len(items)), items):
            some = [items[idx] for idx in chunk]
            for idx, layer in zip(chunk, _layers(module, some, method, ctx), strict=True):
                stack = sparse(layer, method, pattern, float(rates.rates[idx]), self.scope)
                changed += items[idx].overwrite(module.weights, stack, ctx.work_dir)
                errors.append(_report(layer, stack, pattern))
        keep_zeros(module, changed)
        errors.sort(key=lambda each: (-each.error, each.name))
        total = sum(item.size for item in items)
        stats: dict[str, int | float] = {"layers": len(items), "numbers": total}
        if items:
            zeros = sum(_num_zeros(item) for item in items)
            stats |= {"zeros": zeros, "sparsity": zeros / total, "worst-error": errors[0].error}
        if rates.r_squared is not None:
            stats |= {"measured-losses": rates.num_measured, "additivity-r2": rates.r_squared}
        chosen = {item.name: float(rate) for item, rate in zip(items, rates.rates, strict=True)}
        return PassResult(
            bool(items), stats, tuple(skipped), decisions={"method": method, "rates": chosen},
            layers=tuple(errors), plots=rates.plots,
        )  # fmt: skip

    def _pattern(self) -> Pattern:
        pattern = pattern_of(self.pattern)
        if not 0 <= self.rate < 1:
            raise UsageError(f"{_WHO}, option `rate`: {self.rate:g} is not from 0 to below 1")
        if pattern.group and self.allocation != "uniform":
            raise UsageError(
                f"{_WHO}: `pattern={self.pattern}` makes all layers equally sparse",
                hint="leave `allocation` out, or use pattern=unstructured",
            )
        return pattern

    def _method(self, ctx: Context) -> Method:
        if self.method != "auto":
            return self.method
        recorded = ctx.replay.get(self.name, {}).get("method")
        if recorded is not None:
            method: Method = recorded
            return method
        return "sparsegpt" if ctx.samples and ctx.activations is not None else "magnitude"

    def _rates(
        self, module: Module, items: Sequence[Matrices], method: Method, ctx: Context
    ) -> Rates:
        recorded = ctx.replay.get(self.name, {}).get("rates")
        if recorded is not None and all(item.name in recorded for item in items):
            return Rates(np.array([recorded[item.name] for item in items]))
        if self.allocation == "uniform" or not items:
            return Rates(np.full(len(items), self.rate))
        # layers that are compared are all held at once
        layers = _layers(module, items, method, ctx)
        match self.allocation:
            case "global":
                return Rates(global_rates(layers, method, self.rate))
            case "spectral":
                sizes = [item.size for item in items]
                return Rates(spectral_rates(exponents_of(layers), sizes, self.rate))
            case "dp":
                samples = calibration_samples(module, ctx, _WHO)[:MAX_MEASURED]
                assert ctx.activations is not None, "samples come with a source"
                outputs = OutputError(module, ctx.activations, samples, _WHO)
                path = None if self.curves is None else Path(self.curves)
                scorer = Scorer(method, self.scope)
                return measured_rates(module, items, layers, scorer, self.rate, outputs, path)


def _layers(module: Module, items: Sequence[Matrices], method: Method, ctx: Context) -> list[Layer]:
    """Returns the layers with what their inputs are now, where the method or samples give them."""
    if method == "magnitude" and not (ctx.samples and ctx.activations is not None):
        return [Layer(item.name, item.stack()) for item in items]
    products = [each for item in items for each in item.products]
    found = gather_moments(module, products, ctx, _WHO)
    return [Layer(item.name, item.stack(), item.moments(found)) for item in items]


def _chunks(order: range, items: Sequence[Matrices]) -> list[list[int]]:
    """Returns runs of layers whose moments fit into memory together."""
    chunks: list[list[int]] = []
    held = 0
    for idx in order:
        count, size, _ = items[idx].shape
        num_bytes = 8 * count * size * size
        if not chunks or held + num_bytes > _MAX_MOMENT_BYTES:
            chunks.append([])
            held = 0
        chunks[-1].append(idx)
        held += num_bytes
    return chunks


def _even(items: Sequence[Matrices], pattern: Pattern) -> tuple[list[Matrices], list[Skip]]:
    fitting, skipped = [], []
    for item in items:
        size = item.shape[1]
        if size % pattern.group:
            reason = f"{size} inputs are no multiple of {pattern.group}"
            skipped.append(Skip(item.name, reason))
        else:
            fitting.append(item)
    return fitting, skipped


def _report(layer: Layer, stack: Array, pattern: Pattern) -> LayerError:
    density = float(np.count_nonzero(stack)) / stack.size
    text = f"{pattern.keep}:{pattern.group}" if pattern.group else f"{1 - density:.0%} zeros"
    return LayerError(
        layer.name, text, layer.error(stack), layer.moments is not None,
        int(4 * np.count_nonzero(stack)), 4 * stack.size,
    )  # fmt: skip


def _num_zeros(item: Matrices) -> int:
    stack = item.stack()
    return int(stack.size - np.count_nonzero(stack))
