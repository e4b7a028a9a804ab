"""Fixed labels whose positions may go all the same, with what that means.

A `!` label says that dropping a position changes the others. For these operators the change is one
that pruning wants: statistics over fewer channels, a recurrence over fewer units.
"""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.ops.norm import group_norm, layer_norm, rms_norm
from regraft.ir.ops.reduce import reduce_max, reduce_mean, reduce_min
from regraft.ir.ops.rnn import gru, lstm, rnn
from regraft.ir.opspec import OpSpec

COUNTED: Mapping[OpSpec, str] = {
    layer_norm: "c", rms_norm: "c", group_norm: "c",
    reduce_mean: "a", reduce_max: "a", reduce_min: "a",
}  # fmt: skip
"""Statistics, normalizations among them: they are those of the kept positions. By prefix of the
label."""

RECURRENT: Mapping[OpSpec, str] = {rnn: "h", gru: "h", lstm: "h"}
"""Recurrences: a dropped unit is one whose state is zero at every step."""


def may_drop(op: OpSpec, label: str) -> bool:
    """Returns whether positions of a fixed label may be dropped."""
    prefix = COUNTED.get(op) or RECURRENT.get(op)
    return prefix is not None and label.rstrip("0123456789") == prefix
