"""The pass `quantize-blocks`: blocks in few bits, fitted as a whole to what they gave in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.errors import TargetError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import norm
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.block_quantization.coded_inputs import code_inputs
from regraft.passes.calibration.statistics import Statistics, gather_statistics
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.equivalence.reparam_norms import ReparamNorms
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult, Skip, Trainer
from regraft.passes.quantization.encoding import Encoded, Grid, round_to, searched_grid
from regraft.passes.quantization.formats import Format, format_of
from regraft.passes.quantization.rewrite import Input, write_linear
from regraft.passes.quantization.sites import Linear, linears
from regraft.passes.recovery import task
from regraft.passes.recovery.objective import NormalizedMse

Array = np.ndarray[Any, Any]

_GROUP = 32
_NAME = "pass `quantize-blocks`"


@dataclass(frozen=True, slots=True)
class QuantizeBlocks:
    """Stores blocks of a network in few bits, each fitted as a whole to what it gave in float.

    ## What it does
    Layers that are rounded one by one do not know each other's errors. Here every repeated layer
    of the network (attention and what follows it) is fitted by gradients until it gives what the
    float one gives: rounding is learned by what weights are divided by before it (FlexRound).
    With `inputs`, what linear layers read is rounded too, in the three stages of I&S-ViT: weights
    in float are fitted to inputs of norms in a range per channel and of others in one range; the
    ranges of norms are folded into one (`reparam-norms`); weights are rounded and fitted again.

    ## When it applies
    To networks of repeated layers with linear layers of float weights; what lies outside of these
    layers stays, for `quantize`. Needs PyTorch and samples. Norms whose result is the residual
    stream cannot be folded and get one range.

    ## Example
    ```
    %y = matmul(%x, %w)
    ```
    becomes
    ```
    %q = quantize(%x, 0.031, 7)
    %v = dequantize(%w.codes, %w.scales, %w.zero_points) {axis = 0, block_size = 32}
    %y = matmul(dequantize(%q, 0.031, 7), %v)
    ```

    ## Exactness
    Lossy.

    ## References
    Lee et al., FlexRound, 2023; Zhong et al., I&S-ViT, 2023, section 3.3.

    Args:
        weights: Format of weights: integers of 2 to 8 bits.
        group: Inputs that share a scale.
        inputs: Bits of what linear layers read, 2 to 8; 0 leaves it in float.
        steps: Updates of every block, in each of the stages that fit.
        rate: The highest learning rate of divisors, which are logarithms.
        tune_rate: The highest learning rate of weights in the first stage.
    """

    name: ClassVar[str] = "quantize-blocks"
    contract: ClassVar[Contract] = Lossy("output")

    weights: str = "uint4"
    group: int = _GROUP
    inputs: int = 0
    steps: int = 200
    rate: float = 1e-2
    tune_rate: float = 1e-4

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Fits and rewrites.

        Raises:
            UsageError: For options out of range, or without PyTorch or samples.
            TargetError: When no layer repeats.
        """
        fmt = format_of(self.weights, "weights")
        trainer = self._checked(fmt, ctx)
        Canonicalize().run(module, ctx)
        layers = _layers(module)
        if not layers:
            raise TargetError(f"{_NAME}: the network has no repeated layers", hint="use `quantize`")
        mapping: dict[Value, Value] = {}
        teacher = module.clone(mapping)
        targets = [(mapping[layer.input], mapping[layer.output]) for layer in layers]
        stats: dict[str, int | float] = {"blocks": len(layers), "bits": fmt.bits}
        if self.inputs:
            stats |= self._fit_to_codes(module, teacher, targets, ctx, trainer)
            layers = _layers(module)
        readers = _readers(module, layers)
        sites = [site for each in readers.values() for site in each]
        found = gather_statistics(module, list(readers), ctx, who=_NAME)
        grids = {site: self._grid(site, fmt, found[site.x]) for site in sites}
        if self.inputs:
            nodes = {x: [site.node for site in each] for x, each in readers.items()}
            code_inputs(module, nodes, found, self.inputs)
        plan = self._plan(layers, targets, self.rate, _adapter(grids))
        reports = trainer.reconstruct(module, teacher, plan, ctx.samples)
        scales = {x: scale for report in reports for x, scale in report.scales.items()}
        skipped = self._write(module, grids, scales, ctx)
        stats["linear-layers"] = len(sites) - len(skipped)
        stats["loss-first"] = float(np.mean([report.losses[0] for report in reports]))
        stats["loss-last"] = float(np.mean([report.losses[-1] for report in reports]))
        errors = _errors(module, teacher, layers, targets, sites, fmt, ctx)
        Canonicalize().run(module, ctx)
        return PassResult(True, stats, tuple(skipped), layers=tuple(errors))

    def _checked(self, fmt: Format, ctx: Context) -> Trainer:
        if not fmt.is_integer or fmt.scales != "f32":
            raise UsageError(f"{_NAME}, option `weights`: `{fmt.name}` is no integer format")
        if self.inputs and not 2 <= self.inputs <= 8:
            raise UsageError(f"{_NAME}, option `inputs`: {self.inputs} is neither 0 nor 2 to 8")
        if self.group < 1 or self.steps < 1:
            raise UsageError(f"{_NAME}: `group` and `steps` are at least 1")
        if ctx.trainer is None:
            raise UsageError(
                f"{_NAME} needs PyTorch", hint="install it: `pip install 'regraft[torch]'`"
            )
        if not ctx.samples:
            raise UsageError(f"{_NAME} needs samples, and there are none",
                             hint="give inputs with --calibrate")  # fmt: skip
        return ctx.trainer

    def _fit_to_codes(
        self, module: Module, teacher: Module, targets: Sequence[tuple[Value, Value]],
        ctx: Context, trainer: Trainer,
    ) -> dict[str, int | float]:  # fmt: skip
        """Fits weights in float to inputs in few bits, and folds; returns what is counted."""
        layers = _layers(module)
        readers = _readers(module, layers)
        found = gather_statistics(module, list(readers), ctx, who=_NAME)
        norms = frozenset(
            x for x in readers
            if x.producer is not None and x.producer.op in (norm.layer_norm, norm.rms_norm)
        )  # fmt: skip
        nodes = {x: [site.node for site in each] for x, each in readers.items()}
        before = code_inputs(module, nodes, found, self.inputs, norms)
        reports = trainer.reconstruct(
            module, teacher, self._plan(layers, targets, self.tune_rate, None), ctx.samples
        )
        for node, x in before:
            node.set_operand(0, x)
        Canonicalize().run(module, ctx)  # what rounded them is read by nobody now
        folded = ReparamNorms(bits=self.inputs).run(module, ctx)
        return {
            "norms": folded.stats["norms"],
            "tuned-first": float(np.mean([report.losses[0] for report in reports])),
            "tuned-last": float(np.mean([report.losses[-1] for report in reports])),
        }

    def _plan(
        self, layers: Sequence[Layer], targets: Sequence[tuple[Value, Value]], rate: float,
        adapter: task.FlexRound | None,
    ) -> task.Reconstruction:  # fmt: skip
        blocks = tuple(
            task.Block(((layer.input, start),), layer.output, end)
            for layer, (start, end) in zip(layers, targets, strict=True)
        )
        return task.Reconstruction(
            blocks, task.Schedule(self.steps, rate), NormalizedMse(), adapter
        )

    def _grid(self, site: Linear, fmt: Format, stats: Statistics) -> Grid:
        return searched_grid(site.matrix(), fmt, self.group, stats.mean_square)

    def _write(
        self, module: Module, grids: Mapping[Linear, Grid], scales: Mapping[Value, Array],
        ctx: Context,
    ) -> list[Skip]:  # fmt: skip
        """Stores what was rounded as codes; returns what was not."""
        skipped: list[Skip] = []
        for site, grid in grids.items():
            if site.weight not in scales:
                skipped.append(Skip(site.name, "other layers read its weight too"))
                continue
            x = site.node.inputs[0]
            if x is None:
                raise AssertionError("a linear layer has an input")
            learned = Grid(grid.format, scales[site.weight], grid.zero_point, grid.group)
            encoded: Encoded = round_to(site.matrix(), learned)
            write_linear(
                module, site, Input(x), encoded, None, None, ctx.work_dir, per_channel=False
            )
        return skipped


def _layers(module: Module) -> list[Layer]:
    return [each for group in repeated_layers(module.graph) for each in group.layers]


def _readers(module: Module, layers: Sequence[Layer]) -> dict[Value, list[Linear]]:
    """Returns the linear layers within repeated layers, by what they read."""
    inside = {node for layer in layers for node in layer.nodes}
    found: dict[Value, list[Linear]] = {}
    for site in linears(module.graph):
        if site.node in inside:
            found.setdefault(site.x, []).append(site)
    return found


def _adapter(grids: Mapping[Linear, Grid]) -> task.FlexRound:
    return task.FlexRound(tuple(
        task.Grid(site.weight, site.transposed, grid.scale, grid.zero_point, grid.group,
                  grid.format.low, grid.format.high)
        for site, grid in grids.items()
    ))  # fmt: skip


def _errors(
    module: Module, teacher: Module, layers: Sequence[Layer],
    targets: Sequence[tuple[Value, Value]], sites: Sequence[Linear], fmt: Format, ctx: Context,
) -> list[LayerError]:  # fmt: skip
    """Returns what every block gives differently, all blocks before it in few bits too."""
    if ctx.activations is None:
        raise AssertionError("statistics were gathered before")
    off, whole = np.zeros(len(layers)), np.zeros(len(layers))
    ends = [layer.output for layer in layers], [end for _, end in targets]
    runs = [
        ctx.activations.activations(net, values, ctx.samples)
        for net, values in zip((module, teacher), ends, strict=True)
    ]
    for ours, theirs in zip(*runs, strict=True):
        for idx, (own, other) in enumerate(zip(*ends, strict=True)):
            off[idx] += np.square(ours[own] - theirs[other], dtype=np.float64).sum()
            whole[idx] += np.square(theirs[other], dtype=np.float64).sum()
    relative = np.sqrt(off / np.maximum(whole, np.finfo(np.float64).tiny))
    count = [sum(np.prod(s.sizes) for s in sites if s.node in set(each.nodes)) for each in layers]
    found = [
        LayerError(layer.output.name or f"block {idx}", fmt.name, float(error), True,
                   fmt.dtype.nbytes(int(num)), 4 * int(num))
        for idx, (layer, error, num) in enumerate(zip(layers, relative, count, strict=True))
    ]  # fmt: skip
    return sorted(found, key=lambda each: -each.error)
