"""Layers, or rows of their outputs, in 8 bits where 4 cost most: chosen by measured damage.

Every layer is encoded once in both formats. What 4 bits of one layer alone do to the outputs of the
module is measured, and the shared solver takes the choice of least damage within the target. With
`rows`, a layer's damage is spread over its outputs as the errors of their sums are, and the worst
outputs of each layer can be in 8 bits by themselves (Zheng et al., MixLLM, 2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.calibration.curvature import curvature
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.protocol import ActivationSource, LayerError, Samples
from regraft.passes.quantization.encoding import Encoded
from regraft.passes.quantization.formats import UINT8, Format
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.mixed_rows import write_mixed
from regraft.passes.quantization.sites import Linear
from regraft.passes.solver import CurveStore, Problem, SeparateCosts, Unit, measure_curves, solve

Array = np.ndarray[Any, Any]

HIGH = UINT8
_ROW_STEP = 32
"""Outputs that change format together: kernels work on as many at once."""
_ROW_OPTIONS = (0.0, 0.02, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Shares of a layer's outputs in 8 bits that are looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A linear layer in both formats.

    Args:
        site: The layer.
        low: Its weight in few bits.
        high: Its weight in 8 bits.
        shift_low: f32[N], what the mean of the results loses with `low`.
        shift_high: The same with `high`.
        row_error: f64[N], mean square of each output's error with `low` over that with `high`,
            times how much it counts.
        errors: Relative error of the results, in few bits and in 8.
    """

    site: Linear
    low: Encoded
    high: Encoded
    shift_low: Array
    shift_high: Array
    row_error: Array
    errors: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Formats:
    """What layers are encoded in.

    Args:
        low: The format of few bits.
        group: Inputs that share a scale.
        method: How codes are found.
    """

    low: Format
    group: int
    method: Method


def encoded_layer(
    site: Linear, formats: Formats, stats: Statistics | None, gains: Array | float = 1.0
) -> Layer:
    """Returns a layer in both formats, on the inputs of the float module.

    Args:
        site: The layer.
        formats: What it is encoded in.
        stats: Of its input, None without samples.
        gains: How much an error of each output counts, see `row_gains`.
    """
    matrix = site.matrix()
    curved = None
    method: Method = "search" if formats.method == "gptq" else formats.method
    if stats is not None and stats.moments is not None:
        curved, method = curvature(stats.moments), formats.method
    low = encode(matrix, formats.low, formats.group, method, stats, curved)
    high = encode(matrix, HIGH, formats.group, "round", stats)
    lost_low, lost_high = matrix - low.decode(), matrix - high.decode()
    mean = np.zeros(matrix.shape[0]) if stats is None else stats.mean
    rows = [_row_errors(lost, stats) for lost in (lost_low, lost_high)]
    whole = float(_row_errors(matrix, stats).sum()) or 1.0
    return Layer(
        site, low, high, (mean @ lost_low).astype(np.float32),
        (mean @ lost_high).astype(np.float32), np.maximum(rows[0] - rows[1], 0) * gains,
        (float(np.sqrt(rows[0].sum() / whole)), float(np.sqrt(rows[1].sum() / whole))),
    )  # fmt: skip


def _row_errors(lost: Array, stats: Statistics | None) -> Array:
    """Returns the mean square of what each output loses, f64[N]."""
    found: Array
    if stats is None:
        found = np.einsum("kn,kn->n", lost, lost, dtype=np.float64)
    elif stats.moments is not None:
        wide = stats.moments.astype(np.float32) @ lost
        found = np.einsum("kn,kn->n", lost, wide, dtype=np.float64) / max(stats.rows, 1)
    else:
        found = np.einsum("kn,kn,k->n", lost, lost, stats.mean_square, optimize=True)
    return found


@dataclass(slots=True)
class Alone:
    """Measures what layers in few bits do to the outputs (`LossSource`).

    Attributes:
        module: The float module.
        layers: By name.
        source: Gives outputs.
        samples: What it is run on.
        folder: For large codes.
    """

    module: Module
    layers: Mapping[str, Layer]
    source: ActivationSource
    samples: Samples
    folder: Path | None = None
    _reference: list[list[Array]] | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with the module, the codes and the samples."""
        digest = hashlib.sha256(str(self.module).encode())
        for name, layer in self.layers.items():
            digest.update(f"{name} {layer.errors} {layer.low.grid.group}".encode())
        for sample in self.samples:
            for name, array in sorted(sample.items()):
                digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def loss(self, levels: Mapping[str, float]) -> float:
        """Returns the mean square of the error of the outputs over that of the outputs.

        Args:
            levels: By name, the share of the outputs of a layer in 8 bits; layers that are not
                named stay in float.
        """
        values: dict[Value, Value] = {}
        copy = self.module.clone(values)
        chosen = [self.layers[name] for name in levels]
        masks = {name: high_rows(self.layers[name], share) for name, share in levels.items()}
        assemble(copy, chosen, masks, values, self.folder)
        if self._reference is None:
            self._reference = self._outputs(self.module)
        lost = whole = 0.0
        for before, after in zip(self._reference, self._outputs(copy), strict=True):
            for a, b in zip(before, after, strict=True):
                lost += float(np.square(a - b, dtype=np.float64).mean())
                whole += float(np.square(a, dtype=np.float64).mean())
        return lost / max(whole, 1e-300)

    def _outputs(self, module: Module) -> list[list[Array]]:
        outputs = [v for v in module.graph.outputs if v.dtype is not None and v.dtype.is_float]
        found = self.source.activations(module, outputs, self.samples)
        return [[np.array(item[value]) for value in outputs] for item in found]


def assemble(
    module: Module, layers: Sequence[Layer], masks: Mapping[str, Array],
    values: Mapping[Value, Value] | None, folder: Path | None = None,
) -> None:  # fmt: skip
    """Writes layers into their module, or into a copy of it.

    Args:
        module: The module, changed in place.
        layers: The layers.
        masks: bool[N] by name: the outputs in 8 bits.
        values: From values of the layers' module to those of the copy; None for that module itself.
        folder: For large codes.
    """
    for layer in layers:
        site = layer.site if values is None else _translated(layer.site, values)
        mask = masks[site.name]
        shift = np.where(mask, layer.shift_high, layer.shift_low)
        write_mixed(module, site, layer.low, layer.high, mask, shift, folder)


def _translated(site: Linear, values: Mapping[Value, Value]) -> Linear:
    maker = values[site.node.output].producer
    if maker is None:
        raise AssertionError("a layer has a node")
    bias = None if site.bias is None else values[site.bias]
    return Linear(maker, values[site.x], values[site.weight], bias, site.transposed)


def high_rows(layer: Layer, share: float) -> Array:
    """Returns which outputs are in 8 bits when a share of them is: the worst, bool[N]."""
    size = layer.row_error.size
    count = size if share >= 1 else min(round(share * size / _ROW_STEP) * _ROW_STEP, size)
    mask = np.zeros(size, bool)
    mask[np.argsort(-layer.row_error, kind="stable")[:count]] = True
    return mask


def num_bytes(layer: Layer, share: float) -> float:
    """Returns the size of a layer with a share of its outputs in 8 bits."""
    part = float(high_rows(layer, share).mean())
    return part * layer.high.num_bytes + (1 - part) * layer.low.num_bytes


def num_bits(layer: Layer, share: float) -> float:
    """Returns the bits of its codes."""
    part = float(high_rows(layer, share).mean())
    low = layer.low.grid.format.bits
    return float(layer.low.codes.size * (part * HIGH.bits + (1 - part) * low))


def problem(
    layers: Mapping[str, Layer], alone: Mapping[str, float], *, rows: bool, in_bits: bool
) -> tuple[tuple[Unit, ...], SeparateCosts]:
    """Returns units and costs: the share of each layer's outputs in 8 bits.

    Args:
        layers: By name.
        alone: What few bits of each layer lose.
        rows: Whether a layer can be in both formats.
        in_bits: Whether costs are bits of codes, else bytes with scales and zero points.
    """
    cost = num_bits if in_bits else num_bytes
    units, tables = [], []
    for name, layer in layers.items():
        total = float(layer.row_error.sum()) or 1.0
        shares = (
            sorted({float(high_rows(layer, s).mean()) for s in _ROW_OPTIONS}) if rows else [0, 1]
        )
        left = [float(layer.row_error[~high_rows(layer, share)].sum()) / total for share in shares]
        levels = np.array([0.5 + share / 2 for share in shares])
        units.append(Unit(name, levels, alone[name] * np.array(left)))
        tables.append(np.array([cost(layer, share) for share in shares]))
    return tuple(units), SeparateCosts(tables)


def allocate(
    layers: Mapping[str, Layer], alone: Mapping[str, float], budget: float, *, rows: bool,
    in_bits: bool,
) -> dict[str, Array]:  # fmt: skip
    """Returns the outputs in 8 bits by layer, bool[N], of the least damage within a budget.

    Raises:
        TargetError: When even few bits everywhere are not within it.
    """
    units, costs = problem(layers, alone, rows=rows, in_bits=in_bits)
    found = solve(Problem(units, costs, budget))
    levels = found.levels(Problem(units, costs, budget))
    return {name: high_rows(layers[name], 2 * levels[name] - 1) for name in layers}


def best_within(
    source: Alone, alone: Mapping[str, float], budget: float, *, rows: bool, in_bits: bool
) -> dict[str, Array]:
    """Returns what `allocate` does; with `rows`, only where that is measured to lose less."""
    whole = allocate(source.layers, alone, budget, rows=False, in_bits=in_bits)
    if not rows:
        return whole
    split = allocate(source.layers, alone, budget, rows=True, in_bits=in_bits)
    lost = [
        source.loss({name: float(mask.mean()) for name, mask in masks.items()})
        for masks in (whole, split)
    ]
    return split if lost[1] < lost[0] else whole


def damages(source: Alone, path: Path | None = None) -> dict[str, float]:
    """Returns what few bits of each layer alone lose; what a file knows is not measured again."""
    store = CurveStore(path)
    units = measure_curves(source, dict.fromkeys(source.layers, (0.0, 1.0)), store)
    return {unit.name: float(unit.losses[0]) for unit in units}


def layer_errors(layers: Mapping[str, Layer], masks: Mapping[str, Array]) -> list[LayerError]:
    """Returns what rounding costs each layer, and its size."""
    found = []
    for name, layer in layers.items():
        part = float(masks[name].mean())
        low, high = layer.errors
        error = float(np.sqrt(part * high**2 + (1 - part) * low**2))
        names = layer.low.grid.format.name, HIGH.name
        form = names[1] if part == 1 else names[0] if part == 0 else f"{part:.0%} {names[1]}"
        size = round(part * layer.high.num_bytes + (1 - part) * layer.low.num_bytes)
        found.append(LayerError(name, form, error, True, size, 4 * layer.low.codes.size))
    return found
