"""Whether a pruned PyTorch module equals the original with the dropped positions zeroed.

For any tool: which positions it kept is read from the values of the weights, which are random and
hence tell where each came from.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def kept_along_axes(dense: Array, pruned: Array) -> list[Array] | None:
    """Returns the kept positions of every axis, or None when the values do not tell.

    Args:
        dense: A weight.
        pruned: What is left of it: `dense[np.ix_(*kept)]`.
    """
    if dense.ndim != pruned.ndim or not pruned.size:
        return None
    if dense.ndim == 1:
        return _kept_of_row(dense, pruned)
    flat = dense.reshape(-1)
    order = np.argsort(flat, kind="stable")
    places = order[np.minimum(np.searchsorted(flat[order], pruned.reshape(-1)), len(flat) - 1)]
    kept: list[Array] = []
    for axis, index in enumerate(np.unravel_index(places, dense.shape)):
        # equal values at other places mislead single elements; most of a slice do not
        rows = np.moveaxis(index.reshape(pruned.shape), axis, 0).reshape(pruned.shape[axis], -1)
        kept.append(np.array([np.bincount(row).argmax() for row in rows]))
    return kept if np.array_equal(dense[np.ix_(*kept)], pruned) else None


def _kept_of_row(dense: Array, pruned: Array) -> list[Array] | None:
    """Returns the kept positions of a vector: in order, for two elements may be equal."""
    kept: list[int] = []
    for value in pruned:
        start = kept[-1] + 1 if kept else 0
        found = np.flatnonzero(dense[start:] == value)
        if not len(found):
            return None
        kept.append(start + int(found[0]))
    return [np.array(kept)]


def masked(dense: Any, pruned: Any) -> Any | None:
    """Returns a copy of a module with the weights that another one lacks set to zero.

    Normalizations count what is kept: those that shrank run as the pruned module's own on the kept
    channels. None where the values of a weight do not tell which positions were kept.
    """
    import torch

    result = copy.deepcopy(dense)
    left = dict(pruned.named_parameters())
    kept: dict[str, list[Array]] = {}
    for name, parameter in result.named_parameters():
        if name not in left:
            return None
        if parameter.shape == left[name].shape:
            continue
        found = kept_along_axes(parameter.detach().numpy(), left[name].detach().numpy())
        if found is None:
            return None
        kept[name] = found
        mask = np.zeros(parameter.shape, bool)
        mask[np.ix_(*found)] = True
        with torch.no_grad():
            parameter.mul_(torch.from_numpy(mask))
    norms = dict(pruned.named_modules())
    for name, module in result.named_modules():
        kind = type(module).__name__
        positions = kept.get(f"{name}.weight")
        if "Norm" in kind and "Batch" not in kind and positions is not None:
            axis = 1 if "2d" in kind or "Group" in kind else -1
            _count_kept(module, norms[name], positions[0], axis)
    return result


def _count_kept(module: Any, own: Any, positions: Array, axis: int) -> None:
    """Replaces the `forward` of a normalization by the pruned one on what is kept."""
    import torch

    index = torch.from_numpy(positions)

    def forward(x: Any, *args: Any) -> Any:
        normal = own(x.index_select(axis, index), *args)
        return torch.zeros_like(x, dtype=normal.dtype).index_copy(axis % x.ndim, index, normal)

    module.forward = forward


def largest_difference(expected: Any, actual: Any) -> float:
    """Returns the largest difference of two nests of tensors, relative to each tensor."""
    import torch

    worst = 0.0
    leaves = [
        [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]
        for tree in (expected, actual)
    ]
    for left, right in zip(*leaves, strict=True):
        a, b = left.detach().double(), right.detach().double()
        scale = max(float(a.abs().max()), 1e-6)
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst
