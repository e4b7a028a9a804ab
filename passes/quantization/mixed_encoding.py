"""All linear layers of a module in their forms, some inputs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.calibration.statistics import gather_statistics
from regraft.passes.protocol import Context, Samples
from regraft.passes.quantization.mixed_layer import (
    Formats,
    Layer,
    Split,
    encoded_layer,
    seen_input,
)
from regraft.passes.quantization.row_gains import row_gains
from regraft.passes.quantization.sites import Linear

_INPUTS_AT_ONCE = 8
"""Inputs whose second moments are in memory together."""
_JUDGED = 40
"""Samples that damages are measured on, at most; a quarter of all where those are fewer. Codes are
found on the others: on samples that they fit, layers with many inputs lose half of what they do on
new ones."""
_FEW = 8
"""Fewer samples than these serve for both."""


def parted(samples: Samples) -> tuple[Samples, Samples]:
    """Returns samples that codes are found on, and samples that damages are measured on."""
    if len(samples) < _FEW:
        return samples, samples
    count = min(len(samples) // 4, _JUDGED)
    return samples[:-count], samples[-count:]


def encoded_layers(
    module: Module,
    sites: Sequence[Linear],
    formats: Formats,
    splits: frozenset[Split],
    ctx: Context,
) -> dict[str, Layer]:
    """Returns layers by name, encoded on the first samples, with their errors on the last.

    Args:
        module: The float module.
        sites: Its layers, each with a weight of its own.
        formats: What they are encoded in.
        splits: Which parts of layers may be in 8 bits.
        ctx: Gives samples and a source of activations.
    """
    fitted, held = (replace(ctx, samples=part) for part in parted(ctx.samples))
    inputs: dict[Value, list[Linear]] = {}
    for site in sites:
        inputs.setdefault(site.x, []).append(site)
    by_outputs, by_gptq = "outputs" in splits, formats.method == "gptq"
    plain = gather_statistics(module, list(inputs), fitted) if by_outputs else {}
    layers: dict[str, Layer] = {}
    for first in range(0, len(inputs), _INPUTS_AT_ONCE):
        chunk = list(inputs)[first : first + _INPUTS_AT_ONCE]
        # what makes errors of outputs count is told by second moments too
        found = gather_statistics(module, chunk, fitted, chunk if by_gptq or by_outputs else [])
        new = gather_statistics(module, chunk, held, chunk)
        for x in chunk:
            seen = seen_input(found[x], new[x], with_inputs=by_gptq and "inputs" in splits)
            for site in inputs[x]:
                gains = row_gains(site, inputs, {**plain, **found}) if by_outputs else None
                layers[site.name] = encoded_layer(site, formats, seen, gains)
    return layers
