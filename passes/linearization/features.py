"""Learned feature maps: a matrix per head before one of the operator's maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, linalg, reshaping
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.passes.linearization.place import Place


@dataclass(frozen=True, slots=True)
class LearnedMap:
    """One map.

    Args:
        name: As the option `method` has it.
        feature_map: The map of the operator behind the matrix.
        has_matrix: Whether anything is learned.
        has_bias: Whether a bias is.
        is_scaled: Whether the matrix begins at the root of the attention's scale, so that
            products of features begin near the scores, and not at the identity.
    """

    name: str
    feature_map: str
    has_matrix: bool = True
    has_bias: bool = False
    is_scaled: bool = False


MAPS: Mapping[str, LearnedMap] = {
    each.name: each
    for each in (
        LearnedMap("hedgehog", "hedgehog"),
        LearnedMap("t2r", "relu", has_bias=True),
        LearnedMap("elu", "elu", has_matrix=False),
        LearnedMap("exp", "exp", is_scaled=True),
        LearnedMap("taylor", "taylor", is_scaled=True),
    )
}

_NOISE = 0.1
"""Standard deviation of columns beyond the identity's."""


def before_map(place: Place, which: str, made: LearnedMap, features: int) -> Value:
    """Returns queries or keys behind the learned matrix, [B, heads, S, features].

    Args:
        place: The attention.
        which: `q` or `k`.
        made: The map.
        features: Columns of the matrix; 0: the channels of a head.
    """
    x = place.operand(which)
    if not made.has_matrix:
        return x
    heads = place.heads if which == "q" else place.kv_heads
    size = place.size
    columns = features or size
    rng = np.random.default_rng([place.number, which == "q"])
    matrix = rng.normal(0, _NOISE, (heads, size, columns))
    shared = min(size, columns)
    matrix[:, :shared, :shared] = np.eye(shared)
    if made.is_scaled:
        matrix = matrix * abs(place.node.attrs["scale"]) ** 0.5
    weight = place.learned(f"{which}_features", matrix)
    b = place.b
    found = b.op(linalg.matmul, x, b.op(reshaping.reshape, weight, shape=(1, heads, size, columns)))
    if made.has_bias:
        bias = place.learned(f"{which}_features_bias", np.zeros((heads, columns)))
        lined = b.op(reshaping.reshape, bias, shape=(1, heads, 1, columns))
        found = b.op(arithmetic.add, found, lined)
    return found


def behind_map(place: Place, made: LearnedMap, x: Value) -> Value:
    """Returns the features of what `before_map` returned."""
    return FEATURE_MAPS[made.feature_map].build(place.b, x)
