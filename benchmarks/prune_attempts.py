"""What attempts of other tools at pruning share: guarded rows, tensors of nested outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.prune_once import PastLimitError

STARTS = (0.3, 0.5, 0.25)
"""Ratios of channels, tried until one gives a model that runs: 0.3 is about half of the FLOPs of
products between pruned widths, the others divide widths where it does not."""

MAX_RATIOS = 10
CLOSE = 0.01
"""A result this near to half of the FLOPs, relative, is not improved."""


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


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """Returns the shapes of the tensors of a nest."""
    return [tuple(leaf.shape) for leaf in leaves(tree)]
