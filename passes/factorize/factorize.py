"""The pass `factorize`: matrices become products of smaller ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.calibration.moments import Moments, calibration_samples, gather_moments
from regraft.passes.calibration.output_error import OutputError, RewriteLoss
from regraft.passes.calibration.tied import Matrices, matrices_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.factorize.emit import refusal, write_factors
from regraft.passes.factorize.families import Method, Option, Shape, options_of
from regraft.passes.plots import Plot
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult, Skip
from regraft.passes.solver import (
    CurveStore,
    Problem,
    SeparateCosts,
    Unit,
    Words,
    measure_curves,
    solve,
    solver_plots,
)

Array = np.ndarray[Any, Any]

_WHO = "pass `factorize`"
_MAX_MEASURED = 16
"""Samples that outputs are compared on: every size of every layer runs them."""
_MEASURED_OPTIONS = 5
"""Sizes of a layer whose loss at the outputs is measured, of those it has."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A matrix with the sizes that it can have."""

    item: Matrices
    matrix: Array
    options: list[Option]
    moments: Moments | None


@dataclass(frozen=True, slots=True)
class Factorize:
    """Replaces matrices by products of smaller ones: low rank, blocks, or a train of cores.

    ## What it does
    `svd` takes the nearest matrix of a rank; `whitened` the one whose results are nearest on the
    samples. `block-dense` is block-diagonal times dense, `block-shuffle` two block-diagonal factors
    with a shuffle between them, `mpo` a train of small cores. Ranks are chosen by the budget
    solver, so that `rate` of all numbers go: by the bounds of the layers' own errors
    (`allocation=bounds`), by the error of the outputs (`measured`), or the same fraction of each
    (`uniform`). A layer that would not get smaller stays. What each error is at most is recorded
    (`bounds`).

    ## When it applies
    To matrix products and `gemm`; with `svd` and `whitened` to convolutions, too, which become one
    to few channels and one of window 1. `whitened` and `measured` need samples. A constant that
    several products read is factored once.

    ## Example
    ```
    %y = matmul(%x, %w)                     // f32[B, 384] by f32[384, 1536]
    ```
    with `factorize{rank=64}` becomes
    ```
    %h = matmul(%x, %w.left)                // f32[384, 64]
    %y = matmul(%h, %w.right)               // f32[64, 1536]
    ```

    ## Exactness
    Lossy; at full rank exact but for rounding.

    ## References
    Wang et al., SVD-LLM, 2024; Wei et al., Building on Efficient Foundations, 2024; Dao et al.,
    Monarch, 2022; Tomut et al., CompactifAI, 2024.

    Args:
        rate: Fraction of the numbers that goes.
        rank: Rank (or bond) of every layer, in place of a rate.
        method: How; `auto` is `whitened` where there are samples, else `svd`.
        blocks: Blocks on either side.
        cores: Of a train.
        allocation: How ranks are chosen.
        blend: Part of the result that still comes from the whole matrix, for training: 1 is the
            matrix alone, 0 leaves it out.
        keep: Weights that stay as they are, as names or globs.
        curves: File that keeps what `measured` measures.
    """

    name: ClassVar[str] = "factorize"
    contract: ClassVar[Contract] = Lossy("output")

    rate: float = 0.3
    rank: int | None = None
    method: Literal["auto", "svd", "whitened", "block-dense", "block-shuffle", "mpo"] = "auto"
    blocks: int = 4
    cores: int = 2
    allocation: Literal["bounds", "measured", "uniform"] = "bounds"
    blend: float = 0.0
    keep: tuple[str, ...] = ()
    curves: str | None = None

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Decomposes, chooses ranks, writes factors.

        Raises:
            UsageError: For options out of range, or without the samples they need.
            TargetError: When no ranks take so few numbers.
        """
        shape = self._shape(ctx)
        items, skipped = matrices_of(module, self.keep)
        items, refused = _factorable(items, shape)
        layers = self._layers(module, items, shape, ctx)
        chosen, plots = self._chosen(module, layers, ctx)
        report, bounds, ranks = [], {}, {}
        for layer, option in zip(layers, chosen, strict=True):
            if option is None:
                refused.append(Skip(layer.item.name, "stays whole: nothing smaller was chosen"))
                continue
            factors = option.make()
            report.append(_error(layer, option, factors.merged()))
            bounds[layer.item.name], ranks[layer.item.name] = option.bound, option.rank
            write_factors(module, layer.item.products, layer.item.name, factors, self.blend)
        if report:
            drop_dead_code(module)
        report.sort(key=lambda each: (-each.error, each.name))
        before = sum(layer.matrix.size for layer in layers)
        after = sum(
            layer.matrix.size if option is None else option.num_weights
            for layer, option in zip(layers, chosen, strict=True)
        )
        stats: dict[str, int | float] = {
            "layers": len(report), "numbers-before": before, "numbers": after,
        }  # fmt: skip
        if report:
            stats |= {"worst-error": report[0].error, "worst-bound": max(bounds.values())}
        return PassResult(
            bool(report), stats, (*skipped, *refused),
            decisions={"method": shape.method, "ranks": ranks, "bounds": bounds},
            layers=tuple(report), plots=plots,
        )  # fmt: skip

    def _shape(self, ctx: Context) -> Shape:
        for name, value, least, most in (
            ("rate", self.rate, 0.0, 1.0), ("blend", self.blend, 0.0, 1.0),
            ("rank", self.rank or 1, 1, np.inf), ("blocks", self.blocks, 1, np.inf),
            ("cores", self.cores, 2, np.inf),
        ):  # fmt: skip
            if not least <= value <= most:
                raise UsageError(f"{_WHO}, option `{name}`: {value:g} is not in {least} to {most}")
        recorded = ctx.replay.get(self.name, {}).get("method")
        method: Method = recorded or (
            self.method if self.method != "auto"
            else "whitened" if ctx.samples and ctx.activations is not None else "svd"
        )  # fmt: skip
        return Shape(method, self.blocks, self.cores)

    def _layers(
        self, module: Module, items: Sequence[Matrices], shape: Shape, ctx: Context
    ) -> list[_Layer]:
        found = {}
        if shape.method == "whitened":
            products = [each for item in items for each in item.products]
            found = gather_moments(module, products, ctx, _WHO)
        recorded = ctx.replay.get(self.name, {}).get("ranks")
        layers = []
        for item in items:
            moments = item.moments(found) if found else None
            matrix = item.stack()[0]
            options = []
            if recorded is None or item.name in recorded:
                rank = self.rank if recorded is None else recorded[item.name]
                options = options_of(shape, matrix, moments, rank)
            layers.append(_Layer(item, matrix, options, moments))
        return layers

    def _chosen(
        self, module: Module, layers: Sequence[_Layer], ctx: Context
    ) -> tuple[list[Option | None], tuple[Plot, ...]]:
        """Returns the size of every layer, None for what stays whole, and what it is judged by."""
        if self.rank is not None or self.name in ctx.replay:
            return [layer.options[0] if layer.options else None for layer in layers], ()
        keep = 1 - self.rate
        if self.allocation == "uniform":
            return [_within(layer, keep) for layer in layers], ()
        if self.allocation == "measured":
            units, options = self._measured(module, layers, ctx)
        else:
            options = [layer.options for layer in layers]
            units = tuple(
                _unit(f"w{idx}", layer, [each.bound**2 for each in layer.options])
                for idx, layer in enumerate(layers)
            )
        if not units:
            return [], ()
        costs = [
            np.array([*(float(each.num_weights) for each in some), float(layer.matrix.size)])
            for layer, some in zip(layers, options, strict=True)
        ]
        budget = keep * sum(layer.matrix.size for layer in layers)
        problem = Problem(units, SeparateCosts(costs), budget)
        found = solve(problem, "dp")
        names = {unit.name: layer.item.name for unit, layer in zip(units, layers, strict=True)}
        plots = solver_plots(problem, found.choice, Words(names, "fraction of numbers", "numbers"))
        chosen = [
            some[k] if k < len(some) else None
            for some, k in zip(options, found.choice, strict=True)
        ]
        return chosen, plots

    def _measured(
        self, module: Module, layers: Sequence[_Layer], ctx: Context
    ) -> tuple[tuple[Unit, ...], list[list[Option]]]:
        """Returns the error of the outputs when each layer alone has each size."""
        samples = calibration_samples(module, ctx, _WHO)[:_MAX_MEASURED]
        assert ctx.activations is not None, "samples come with a source"
        options = [
            layer.options[:: max(1, -(-len(layer.options) // _MEASURED_OPTIONS))]
            for layer in layers
        ]
        by_level = [
            {each.num_weights / layer.matrix.size: each for each in some}
            for layer, some in zip(layers, options, strict=True)
        ]

        def rewritten(levels: Mapping[str, float]) -> Module:
            copy = module.clone()
            for name, level in levels.items():
                idx = int(name.removeprefix("w"))
                merged = by_level[idx][level].make().merged()
                layers[idx].item.overwrite(copy.weights, merged[None])
            return copy

        outputs = OutputError(module, ctx.activations, samples, _WHO)
        text = f"{module.graph} {self.method} {self.blocks} {self.cores}"
        store = CurveStore(None if self.curves is None else Path(self.curves))
        levels = {f"w{idx}": [*each, 1.0] for idx, each in enumerate(by_level)}
        return measure_curves(RewriteLoss(outputs, rewritten, text), levels, store), options


def _factorable(items: Sequence[Matrices], shape: Shape) -> tuple[list[Matrices], list[Skip]]:
    found, skipped = [], []
    for item in items:
        _, inputs, outputs = item.shape
        is_plain = shape.grid == (1, 1) and shape.method != "mpo"
        reasons = [refusal(each, is_plain=is_plain) for each in item.products]
        reason = next((each for each in reasons if each), shape.refusal(inputs, outputs))
        if reason is None:
            found.append(item)
        else:
            skipped.append(Skip(item.name, reason))
    return found, skipped


def _unit(name: str, layer: _Layer, losses: Sequence[float]) -> Unit:
    """Returns a layer's sizes as options of the solver, the whole matrix behind them."""
    levels = [each.num_weights / layer.matrix.size for each in layer.options]
    return Unit(name, np.array([*levels, 1.0]), np.array([*losses, 0.0]))


def _within(layer: _Layer, keep: float) -> Option | None:
    """Returns the largest size within a fraction of the layer; the smallest where none is."""
    if not layer.options or keep >= 1:
        return None
    fitting = [each for each in layer.options if each.num_weights <= keep * layer.matrix.size]
    return fitting[-1] if fitting else layer.options[0]


def _error(layer: _Layer, option: Option, merged: Array) -> LayerError:
    if layer.moments is not None:
        error = layer.moments.error(layer.matrix[None], merged[None])
    else:
        scale = float(np.square(layer.matrix.astype(np.float64)).sum()) or 1.0
        error = float(np.sqrt(np.square(merged - layer.matrix).sum(dtype=np.float64) / scale))
    return LayerError(
        layer.item.name, f"rank {option.rank}", error, layer.moments is not None,
        4 * option.num_weights, 4 * layer.matrix.size,
    )  # fmt: skip
