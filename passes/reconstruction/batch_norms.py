"""Statistics of batch normalizations, measured again on what now flows."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.passes.reconstruction.counterpart import Counterpart
from regraft.passes.reconstruction.frontier import Frontier
from regraft.passes.reconstruction.sites import write_constant

Array = np.ndarray[Any, Any]

_MEAN, _VARIANCE = 3, 4
_ANY_SIZE = 1 << 62


def refresh(module: Module, node: Node, before: Counterpart, now: Frontier, then: Frontier) -> bool:
    """Moves mean and variance as those of the samples moved, in place; returns whether it helps.

    The stored variance changes by the ratio of the samples' variances, the stored mean with the
    samples' own, so that a change of scale and place is undone exactly. On data like that of the
    training this is what measuring anew gives; on other data, and on noise, what pruning changed
    still shows.
    """
    x = node.inputs[0]
    assert x is not None, "a normalization has an operand"
    old = before.values[node.output].producer
    assert old is not None, "the copy of a result has a node"
    old_x = old.inputs[0]
    assert old_x is not None, "and an operand"
    (mine,), (theirs,) = now.values([x]), then.values([old_x])
    theirs = [before.kept(x, each) for each in theirs]
    mean, variance = (_stored(node, idx) for idx in (_MEAN, _VARIANCE))
    (mean_then, var_then), (mean_now, var_now) = _moments(theirs), _moments(mine)
    ratio = np.where(var_then > 0, var_now / np.where(var_then > 0, var_then, 1.0), 1.0)
    ratio = np.where(ratio > 0, ratio, 1.0)
    moved = mean_now + (mean - mean_then) * np.sqrt(ratio)
    scaled = variance * ratio
    epsilon = node.attrs["epsilon"]
    goal = [(each - _wide(mean, each)) / _std(variance, epsilon, each) for each in theirs]
    if not _error(mine, goal, moved, scaled, epsilon) < _error(mine, goal, mean, variance, epsilon):
        return False
    write_constant(module, node, _MEAN, moved)
    write_constant(module, node, _VARIANCE, scaled)
    return True


def _stored(node: Node, idx: int) -> Array:
    array = constant_of(node.inputs[idx], _ANY_SIZE)
    assert array is not None, "statistics are constant"
    return array.astype(np.float64)


def _moments(arrays: list[Array]) -> tuple[Array, Array]:
    """Returns mean and variance per channel, over all samples."""
    axes = tuple(i for i in range(arrays[0].ndim) if i != 1)
    count = sum(array.size // array.shape[1] for array in arrays)
    mean = sum(array.sum(axes, dtype=np.float64) for array in arrays) / count
    squares = sum(
        np.square(array - _wide(np.asarray(mean), array)).sum(axes, dtype=np.float64)
        for array in arrays
    )
    return np.asarray(mean), np.asarray(squares / count)


def _wide(channels: Array, like: Array) -> Array:
    return channels.reshape(1, -1, *(1,) * (like.ndim - 2))


def _std(variance: Array, epsilon: float, like: Array) -> Array:
    return _wide(np.sqrt(variance + epsilon), like)


def _error(
    arrays: list[Array], goal: list[Array], mean: Array, variance: Array, epsilon: float
) -> float:
    return sum(
        float(
            np.square((x - _wide(mean, x)) / _std(variance, epsilon, x) - y).sum(dtype=np.float64)
        )
        for x, y in zip(arrays, goal, strict=True)
    )
