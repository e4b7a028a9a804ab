"""A norm between what an expert gives and its weight: of all experts the same."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.constants import is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, norm
from regraft.passes.analysis.linear_layers import only_user
from regraft.passes.cleanup.facts import uniform


@dataclass(frozen=True, slots=True)
class ResultNorm:
    """behind * x * before / sqrt(mean((x * before)^2) + epsilon).

    Args:
        epsilon: Added to the mean square.
        before: One factor per channel, [O], or None.
        behind: The same, of what is normalized.
    """

    epsilon: float
    before: Value | None
    behind: Value | None


def behind_norm(value: Value) -> tuple[Value, ResultNorm | None]:
    """Returns what an RMS norm makes of a value, and the norm; the value itself without one."""
    node, before = only_user(value), None
    if node is not None and node.op is arithmetic.mul:
        before = _per_channel(node, value)
        node = None if before is None else only_user(node.output)
    if node is None or node.op is not norm.rms_norm or node.attrs["axis"] != -1:
        return value, None
    scale = node.inputs[1]
    if scale is None or not _is_fixed(scale) or not node.attrs["epsilon"]:
        return value, None
    behind = None if uniform(scale) == 1 else scale
    return node.output, ResultNorm(float(node.attrs["epsilon"]), before, behind)


def _per_channel(node: Node, value: Value) -> Value | None:
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or other.shape is None or value.shape is None or not _is_fixed(other):
        return None
    return other if other.shape == value.shape[-1:] else None


def _is_fixed(value: Value, depth: int = 4) -> bool:
    """Returns whether a value follows from constants, in a few steps."""
    node = value.producer
    if node is None or is_constant(value) or not depth:
        return is_constant(value)
    return bool(node.inputs) and all(v is None or _is_fixed(v, depth - 1) for v in node.inputs)
