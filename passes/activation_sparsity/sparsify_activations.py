"""The pass `sparsify-activations`: entries of what products read become zero at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.activation_sparsity.cuts import Cut, threshold_of, write_cut
from regraft.passes.activation_sparsity.places import Place, gates, inputs_of_products
from regraft.passes.calibration.moments import calibration_samples
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult, Samples

Array = np.ndarray[Any, Any]

_WHO = "pass `sparsify-activations`"
_MAX_RUNS = 48
"""Times that samples are run: places of deeper models are taken several at a time."""


@dataclass(frozen=True, slots=True)
class SparsifyActivations:
    """Sets the least entries of what products read to zero, anew for every row.

    ## What it does
    `wina` keeps, of every row that matrices read, the entries of largest `|x_i| |W_i|`, with the
    norm of the weights that entry i is multiplied by. `magnitude` looks at `|x_i|` alone. `chess`
    cuts the activated gate of feed-forward blocks where `|gate_i|` times the mean `|up_i|` it will
    be multiplied by is low, with a threshold per channel. `cut=rank` keeps the same number in every
    row; `cut=threshold` cuts below what samples say, so that `rate` of all entries go on average
    (always so for `chess`). Products themselves are as before: kernels that skip zeros may read the
    mask. What fraction went on the samples, and what that does to the results, is in the report.

    ## When it applies
    To matrix products and `gemm` by a constant matrix over the last axis. Values that several of
    them read are cut once. `chess` needs gated blocks.

    ## Example
    ```
    %y = matmul(%x, %w)
    ```
    becomes
    ```
    %s = mul(abs(%x), %norms)
    %t = reduce_min(top_k(%s) {k = 192})
    %c = where(greater_or_equal(%s, %t), %x, 0)
    %y = matmul(%c, %w)
    ```

    ## Exactness
    Lossy; with `rate=0` exact.

    ## References
    Chen et al., WINA: Weight Informed Neuron Activation, 2025; He et al., CHESS: Channel-Wise
    Thresholding and Selective Sparsification, 2024; Liu et al., TEAL, 2024 (`magnitude`).

    Args:
        rate: Fraction of the entries that goes.
        method: What an entry counts for.
        cut: By rank within a row, or by thresholds.
        only: Weights whose inputs are cut, as names or globs; default: all.
        keep: Weights whose inputs are left alone.
    """

    name: ClassVar[str] = "sparsify-activations"
    contract: ClassVar[Contract] = Lossy("output")

    rate: float = 0.5
    method: Literal["wina", "magnitude", "chess"] = "wina"
    cut: Literal["rank", "threshold"] = "rank"
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates and writes the cuts, each on inputs as they are by then.

        Raises:
            UsageError: For a rate out of range, or without samples where thresholds need them.
        """
        if not 0 <= self.rate < 1:
            raise UsageError(f"{_WHO}, option `rate`: {self.rate:g} is not from 0 to below 1")
        find = gates if self.method == "chess" else inputs_of_products
        places, skipped = find(module, self.only, self.keep)
        by_rank = self.cut == "rank" and self.method != "chess"
        seen = bool(ctx.samples) and ctx.activations is not None
        samples: Samples = ()
        if places and (seen or not by_rank):
            samples = calibration_samples(module, ctx, _WHO)
        report: list[LayerError] = []
        realized: dict[str, tuple[float, int]] = {}
        # what is cut changes what later products read: they are calibrated behind it
        stride = len(places) if by_rank else -(-len(places) // _MAX_RUNS)
        for first in range(0, len(places), stride or 1):
            chunk = places[first : first + stride]
            rows = _rows(module, chunk, samples, ctx)
            for place in chunk:
                given = rows.get(place.value, [])
                partner = [] if place.partner is None else rows[place.partner]
                cut = self._cut(place, given, partner, by_rank=by_rank)
                if given:
                    report.append(_error(place, cut, given, partner))
                    zeros = sum(int((cut.apply(x) == 0).sum()) for x in given)
                    size = sum(x.size for x in given)
                    realized[place.name] = zeros / size, size
                _write(module, place, cut)
        report.sort(key=lambda each: (-each.error, each.name))
        stats: dict[str, int | float] = {"places": len(places)}
        if realized:
            fractions, sizes = zip(*realized.values(), strict=True)
            stats["realized"] = float(np.average(fractions, weights=sizes))
            stats["worst-error"] = report[0].error
        return PassResult(
            bool(places), stats, tuple(skipped),
            decisions={"realized": {name: each for name, (each, _) in realized.items()}},
            layers=tuple(report),
        )  # fmt: skip

    def _cut(
        self, place: Place, given: Sequence[Array], partner: Sequence[Array], *, by_rank: bool
    ) -> Cut:
        size = place.readers[0].stack().shape[1]
        match self.method:
            case "wina":
                weights = place.norms()
            case "magnitude":
                weights = np.ones(size)
            case "chess":
                # t_i = q / E|up_i|: |gate_i| <= t_i where |gate_i| E|up_i| <= q
                sums = sum(np.abs(x).reshape(-1, size).sum(0, dtype=np.float64) for x in partner)
                weights = np.asarray(sums) / sum(x.size // size for x in partner)
        weights = weights.astype(np.float32)
        if by_rank:
            return Cut(weights, kept=max(1, round((1 - self.rate) * size)))
        return Cut(weights, threshold=threshold_of([np.abs(x) * weights for x in given], self.rate))


def _rows(
    module: Module, places: Sequence[Place], samples: Samples, ctx: Context
) -> dict[Value, list[Array]]:
    """Returns what the values of places are on samples, as the module is now."""
    wanted = list(dict.fromkeys(v for p in places for v in (p.value, p.partner) if v is not None))
    found: dict[Value, list[Array]] = {value: [] for value in wanted}
    if samples and wanted and ctx.activations is not None:
        for item in ctx.activations.activations(module, wanted, samples):
            for value in wanted:
                found[value].append(np.asarray(item[value], np.float32))
    return found


def _write(module: Module, place: Place, cut: Cut) -> None:
    """Lets the users of a place read the cut value."""
    b = Builder(module.graph, min(place.users, key=lambda node: node.order))
    result = write_cut(b, place.value, cut)
    for node in place.users:
        for idx, value in enumerate(node.inputs):
            if value is place.value:
                node.set_operand(idx, result)


def _error(place: Place, cut: Cut, given: Sequence[Array], partner: Sequence[Array]) -> LayerError:
    """Returns what a cut does to the results of all readers, on samples."""
    off = scale = 0.0
    for idx, x in enumerate(given):
        after = cut.apply(x)
        before = x
        if partner:
            before, after = before * partner[idx], after * partner[idx]
        for reader in place.readers:
            matrix = reader.stack()[0]
            exact = before.reshape(-1, matrix.shape[0]) @ matrix
            off += float(np.square(after.reshape(-1, matrix.shape[0]) @ matrix - exact).sum())
            scale += float(np.square(exact).sum())
    error = (off / scale) ** 0.5 if scale else 0.0
    num_bytes = 4 * sum(reader.num_weights for reader in place.readers)
    return LayerError(place.name, "cut inputs", error, True, num_bytes, num_bytes)
