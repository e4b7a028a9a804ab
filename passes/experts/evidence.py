"""What feed-forward blocks read and compute on samples, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops.moe_hidden import ACTIVATIONS
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.calibration.moments import calibration_samples
from regraft.passes.experts.dense import Dense
from regraft.passes.protocol import Context

Array = np.ndarray[Any, Any]

_MASK = "attention_mask"
"""Entry of a sample that is zero at padding, which says nothing of what tokens need."""

MAX_ROWS = 4096
"""Tokens that a block is judged by; those of all samples alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Of one block on samples.

    Args:
        x: f32[N, D], what it reads.
        hidden: f32[N, F], what its last layer reads.
        sample: i64[N], the sample that a row is of.
    """

    x: Array
    hidden: Array
    sample: Array


def gather_rows(
    module: Module, blocks: Sequence[FfnBlock], ctx: Context, who: str
) -> tuple[dict[Value, Array], Array]:
    """Returns rows f32[N, D] of what every block reads, and the samples that they are of.

    Raises:
        UsageError: Without samples, or a source of values.
    """
    axes = {block.up.input: block.up.in_axis for block in blocks}
    return rows_of(module, axes, ctx, who)


def rows_of(
    module: Module, axes: dict[Value, int], ctx: Context, who: str
) -> tuple[dict[Value, Array], Array]:
    """Returns rows of values whose channels are at given axes, and the samples that they are of."""
    samples = calibration_samples(module, ctx, who)
    assert ctx.activations is not None, "samples come with a source"
    quota = max(1, MAX_ROWS // max(1, len(samples)))
    found: dict[Value, list[Array]] = {value: [] for value in axes}
    numbers: list[Array] = []
    for number, values in enumerate(ctx.activations.activations(module, list(axes), samples)):
        count, mask = 0, samples[number].get(_MASK)
        for value, axis in axes.items():
            array = np.moveaxis(values[value], axis, -1)
            rows = array.reshape(-1, array.shape[-1])
            if mask is not None and mask.size == len(rows):
                rows = rows[mask.reshape(-1) != 0]
            stride = -(-len(rows) // quota)
            found[value].append(rows[::stride].astype(np.float32))
            count = len(found[value][-1])
        numbers.append(np.full(count, number))
    joined = {value: np.concatenate(parts) for value, parts in found.items()}
    return joined, np.concatenate(numbers)


def hidden_of(dense: Dense, activation: str, x: Array) -> Array:
    """Returns what the last layer reads, f[N, F] of f[N, D]."""

    def project(name: str) -> Array:
        rows: Array = x @ getattr(dense, name).astype(x.dtype).T
        bias = getattr(dense, f"{name}_bias")
        return rows if bias is None else rows + bias.astype(x.dtype)

    act = ACTIVATIONS[activation]
    if dense.gate is None:
        return act.eval(project("up"))
    result: Array = act.eval(project("gate")) * project("up")
    return result


def responses(hidden: Array, down: Array, experts: Sequence[Array]) -> Array:
    """Returns the norms of what experts give, f64[N, E].

    Args:
        hidden: f[N, F]; less its mean where that is made up for.
        down: f[O, F].
        experts: Their channels.
    """
    found = []
    for channels in experts:
        # |h W|^2 = h (W W') h'
        part, rows = hidden[:, channels].astype(np.float64), down[:, channels].astype(np.float64)
        found.append(np.sqrt(np.einsum("nf,nf->n", part @ (rows.T @ rows), part).clip(min=0)))
    return np.stack(found, 1)
