"""The pass `split-weights`: a layer becomes the sum of layers whose weights have ranges alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg
from regraft.ir.weights import ArrayWeight
from regraft.passes.protocol import Context, Contract, Exact, PassResult
from regraft.passes.quantization.refusals import check_finite
from regraft.passes.quantization.sites import linears

Array = np.ndarray[Any, Any]

_ROUNDS = 50
_BINS = 4096


@dataclass(frozen=True, slots=True)
class SplitWeights:
    """Splits every linear layer into a sum of layers, by the size of its weights.

    ## What it does
    Clusters the weights of a layer into `parts` runs of neighbouring numbers (k-means in one
    dimension), and replaces the layer by the sum of layers of the same shape that hold one
    cluster each, with zeros elsewhere. Each part has a range of its own, so that a few large
    weights no longer take the codes from the many small ones; `quantize` then rounds every part.

    ## When it applies
    To linear layers with a constant weight. It multiplies the work by `parts`: for 2 to 4 bits.

    ## Example
    ```
    %y = matmul(%x, %w)
    ```
    becomes
    ```
    %y = matmul(%x, %w.low) + matmul(%x, %w.middle) + matmul(%x, %w.high)
    ```

    ## Exactness
    Exact: every weight stands in one part.

    ## References
    Song et al., SplitQuant, 2025.

    Args:
        parts: How many layers one becomes, 2 to 8.
    """

    name: ClassVar[str] = "split-weights"
    contract: ClassVar[Contract] = Exact()

    parts: int = 3

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Clusters and splits.

        Raises:
            UsageError: For another number of parts.
        """
        if not 2 <= self.parts <= 8:
            raise UsageError(f"pass `split-weights`, option `parts`: {self.parts} is not in 2 to 8")
        count = 0
        for site in list(linears(module.graph)):
            matrix, x = site.matrix(), site.node.inputs[0]
            check_finite(site.name, matrix)
            labels = clusters(matrix, self.parts)
            if labels.max() == 0:
                continue
            b = Builder(module.graph, site.node, site.node.loc)
            total = None
            for label in range(int(labels.max()) + 1):
                part = np.where(labels == label, matrix, np.float32(0))
                held = b.weight(f"{site.name}.part{label}", ArrayWeight(part, (site.name,)))
                # not `site.x`: the layer that made it may be split already
                product = b.op(linalg.matmul, x, held)
                total = product if total is None else b.op(arithmetic.add, total, product)
            if site.bias is not None and total is not None:
                total = b.op(arithmetic.add, total, site.bias)
            if total is None:
                raise AssertionError("there are at least two parts")
            module.graph.replace(site.node, [total])
            count += 1
        return PassResult(bool(count), {"layers": count, "parts": self.parts})


def clusters(numbers: Array, count: int) -> Array:
    """Returns the number of the run that every number belongs to, in rising order of the numbers.

    k-means in one dimension over a histogram, from quantiles; fewer runs where numbers repeat.

    Args:
        numbers: f32 of any shape.
        count: Runs.
    """
    flat = numbers.reshape(-1).astype(np.float64)
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        return np.zeros(numbers.shape, np.int64)
    counts, edges = np.histogram(flat, _BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    # from equal parts of the range: quantiles would begin with no run for a few large weights
    means = low + (high - low) * (np.arange(count) + 0.5) / count
    for _ in range(_ROUNDS):
        borders = (means[1:] + means[:-1]) / 2
        place = np.searchsorted(borders, centres)
        mass = np.bincount(place, counts, count)
        sums = np.bincount(place, counts * centres, count)
        moved = np.where(mass > 0, sums / np.maximum(mass, 1), means)
        if np.allclose(moved, means, rtol=1e-9):
            break
        means = moved
    labels = np.searchsorted((means[1:] + means[:-1]) / 2, flat)
    return np.unique(labels, return_inverse=True)[1].reshape(numbers.shape)
