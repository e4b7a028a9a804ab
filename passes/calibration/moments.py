"""Second moments of the rows that constants are multiplied by, gathered on samples."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.calibration.products import ConstantProduct
from regraft.passes.protocol import Context, Samples

Array = np.ndarray[Any, Any]
Key = tuple[Value, Hashable]
"""An input and how its rows are seen."""

_ROWS_AT_ONCE = 512
"""Rows of one product: adding K x K numbers for every sample takes longer than all the rest."""

_MAX_ROWS = 4096
"""Rows of one sample: a large image has a window per pixel, and neighbours say the same."""


@dataclass(slots=True)
class Moments:
    """What was seen of one input.

    Attributes:
        second: f64[E, K, K], the sum of x xᵀ over rows x; E is 1 where all matrices see the same.
        total: f64[E, K], the sum of rows.
        num_rows: How many rows were seen, of each of E.
    """

    second: Array
    total: Array
    num_rows: int = 0
    _pending: list[Array] = field(default_factory=list)

    @staticmethod
    def empty(count: int, size: int) -> Moments:
        """Returns moments of nothing."""
        return Moments(np.zeros((count, size, size)), np.zeros((count, size)))

    @property
    def mean_square(self) -> Array:
        """f64[E, K]."""
        found: Array = np.einsum("ekk->ek", self.second) / max(self.num_rows, 1)
        return found

    def update(self, rows: Array) -> None:
        """Takes in f[E, R, K]."""
        stride = -(-rows.shape[1] // _MAX_ROWS)
        self._pending.append(np.array(rows[:, ::stride], np.float32))
        if sum(each.shape[1] for each in self._pending) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Takes the rows that still wait into the sums."""
        if self._pending:
            rows = np.concatenate(self._pending, axis=1)
            self.second += rows.swapaxes(1, 2) @ rows
            self.total += rows.sum(1, dtype=np.float64)
            self.num_rows += rows.shape[1]
        self._pending = []

    def energy(self, stack: Array) -> float:
        """Returns the sum of squares of what the rows give with f[E, K, N]."""
        wide = stack.astype(np.float64)
        return float(np.einsum("ekn,ekn->", wide, self.second @ wide))

    def error(self, before: Array, after: Array) -> float:
        """Returns the root mean square of what a change of f[E, K, N] makes, relative."""
        scale = self.energy(before)
        return float(np.sqrt(max(self.energy(after - before), 0.0) / scale)) if scale else 0.0


def key_of(product: ConstantProduct) -> Key:
    """Returns what the moments of a product's input are found under."""
    return product.x, product.layout.key


def calibration_samples(module: Module, ctx: Context, who: str) -> Samples:
    """Returns the user's samples, else generated ones with a warning.

    Raises:
        UsageError: Without any, or a source of activations.
    """
    if ctx.activations is None:
        raise UsageError(f"{who} needs values inside the module, and there is no source")
    if ctx.samples:
        return ctx.samples
    if not ctx.probes:
        raise UsageError(
            f"{who} needs samples, and there are none",
            hint="give inputs with --calibrate, or choose a method that needs none",
        )
    text = f"{who}: calibrated on {len(ctx.probes)} synthetic samples; --calibrate gives real ones"
    if text not in module.warnings:
        module.warnings.append(text)
    return ctx.probes


def gather_moments(
    module: Module, products: Iterable[ConstantProduct], ctx: Context, who: str
) -> dict[Key, Moments]:
    """Runs the samples and returns the moments of each input, as the module is now.

    Args:
        module: The module.
        products: Products of its main graph.
        ctx: Gives samples and a source of activations.
        who: What asks, for errors.

    Raises:
        UsageError: Without samples or a source, or when a value holds NaN or Inf.
    """
    layouts = {key_of(each): each.layout for each in products}
    samples = calibration_samples(module, ctx, who)
    values = list(dict.fromkeys(x for x, _ in layouts))
    found: dict[Key, Moments] = {}
    if ctx.activations is None or not values:
        return found
    for item in ctx.activations.activations(module, values, samples):
        for key, layout in layouts.items():
            array = item[key[0]]
            if not np.isfinite(array).all():
                raise UsageError(
                    f"`{key[0].name}` holds NaN or Inf on a sample",
                    hint="find the sample with `regraft compare`",
                )
            rows = layout.rows(np.asarray(array, np.float32))
            if key not in found:
                found[key] = Moments.empty(rows.shape[0], rows.shape[2])
            found[key].update(rows)
    for moments in found.values():
        moments.flush()
    return found
