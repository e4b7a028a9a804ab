"""What attempts of other tools at pruning share: guarded rows, tensors of nested outputs."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.prune_once import TARGET, PastLimitError
from benchmarks.prune_subjects import Subject

STARTS = (0.3, 0.5)
"""Ratios of channels, tried until one gives a model that runs: 0.3 is about half of the FLOPs of
products between pruned widths, 0.5 divides widths where it does not."""

MAX_RATIOS = 8
"""Further ratios, each nearer to half of the FLOPs."""

CLOSE = 0.01
"""A result this near to half of the FLOPs, relative, is not improved."""


def next_ratio(known: Mapping[float, float]) -> float:
    """Returns a ratio of channels that may leave half of the FLOPs.

    FLOPs of products between pruned widths fall with the square of what is kept, so that their root
    is taken to be linear between the nearest ratios known; what outputs pin does not fall, so that
    beyond the largest ratio known the middle is taken.

    Args:
        known: The part of the FLOPs that is left, by ratio.
    """
    roots = sorted(
        (ratio, math.sqrt(left)) for ratio, left in {0.0: 1.0, 1.0: 0.0, **known}.items()
    )
    wanted = math.sqrt(TARGET)
    for (low, above), (high, below) in itertools.pairwise(roots):
        if below <= wanted <= above and above > below:
            if high == 1.0 and len(known) > 1:  # where nothing is left is only assumed
                return (low + high) / 2
            return low + (high - low) * (above - wanted) / (above - below)
    return STARTS[0]


def guarded(name: str, measure: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Returns the row of a model that a measurement fills; what it raises is its reason."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": name, "stage": "build", "runs": False, "shape": False}
    try:
        measure(row)
    except (PastLimitError, Exception) as error:  # every failure is a row, with its stage
        row["reason"] = f"{type(error).__name__}: {error}"[:300]
    return row


def leaves(tree: Any) -> list[Any]:
    """Returns the tensors of a nest."""
    import torch

    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]


def positional(it: Subject) -> Any:
    """Returns the model as a module of its sample's tensors, one by one, that returns a tuple."""
    from torch import nn

    class Positional(nn.Module):  # type: ignore[misc]  # torch is untyped where it is not installed
        def __init__(self) -> None:
            super().__init__()
            self.net = it.net

        def forward(self, *tensors: Any) -> Any:
            return tuple(leaves(replace(it, sample=tensors).call(self.net)))

    return Positional()


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """Returns the shapes of the tensors of a nest."""
    return [tuple(leaf.shape) for leaf in leaves(tree)]
