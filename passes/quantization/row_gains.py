"""How much an error of each output of a linear layer counts for what reads it.

Between a layer and the next often stands a function of single numbers, such as gelu. An output that
it all but switches off, or that the next layer gives small weights, bears more error than another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.opspec import Trait
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.quantization.sites import Linear

Array = np.ndarray[Any, Any]

_MAX_STEPS = 16
_TINY = 1e-12


def row_gains(
    site: Linear, readers: Mapping[Value, Sequence[Linear]], found: Mapping[Value, Statistics]
) -> Array | None:
    """Returns what the square of an error of each output is multiplied by, f64[N], 1 on average.

    None where what reads the outputs does not follow from them one by one.

    The slope of what stands between, squared, is taken to be the variance after over that before.

    Args:
        site: The layer; its input's statistics have second moments.
        readers: Linear layers by what they read.
        found: Statistics by input, of this layer's and of those of the readers.
    """
    width = site.sizes[1]
    after = _next_input(site, readers)
    own = found.get(site.x)
    if after is None or own is None or own.moments is None or after not in found:
        return None
    matrix = site.matrix().astype(np.float64)
    square = np.einsum("kn,kn->n", matrix, own.moments @ matrix) / max(own.rows, 1)
    before = square - np.square(own.mean @ matrix)
    stats = found[after]
    variance = stats.mean_square - np.square(stats.mean)
    slope = np.maximum(variance, 0) / np.maximum(before, _TINY * float(square.max()) + _TINY)
    weight = np.zeros(width)
    for reader in readers[after]:
        weight += np.square(reader.matrix(), dtype=np.float64).sum(1)
    gains: Array = np.minimum(slope, 1.5) * weight
    return gains / max(float(gains.mean()), _TINY)


def _next_input(site: Linear, readers: Mapping[Value, Sequence[Linear]]) -> Value | None:
    """Returns what a linear layer reads that follows from the outputs one by one, or None."""
    waiting, width = [site.with_bias()[0].output], site.sizes[1]
    for _ in range(_MAX_STEPS):
        if not waiting:
            return None
        value = waiting.pop(0)
        if value in readers:
            return value
        for user in value.users:
            result = user.output if len(user.outputs) == 1 else None
            if result is None or Trait.ELEMENTWISE not in user.op.traits:
                continue
            if result.shape and result.shape[-1] == width:
                waiting.append(result)
    return None
