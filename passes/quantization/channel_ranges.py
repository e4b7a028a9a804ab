"""Channels between convolutions are brought to one range before the range is cut into codes.

A range of 8 bits is that of the largest channel; what a channel a tenth as large holds is then told
in 25 codes. Where a factor moves from the weight that makes a channel to those that read it, the
small channels are made larger, by most of what they lack: after Nagel et al., Data-Free
Quantization Through Weight Equalization and Bias Correction, 2019, with ranges of values for those
of weights. Scales of depthwise kernels and of outputs take such a factor in without loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import activation
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.equivalence.factors import Factor, places_of, reach
from regraft.passes.equivalence.scaling import Refused, ScalePlan, apply_plan, plan_factor

Array = np.ndarray[Any, Any]

_STRENGTH = 0.7
"""Samples do not show all that a channel may hold: below 1, small ones keep some room."""
_LIMIT = 64.0


def level_channels(module: Module, readers: Sequence[Value], tops: Mapping[Value, Array]) -> int:
    """Multiplies small channels and divides what reads them; returns how many rows of channels.

    A clip keeps its bounds: what is made larger stays below the largest value seen, and what would
    go beyond it is cut off as the end of the range cuts it off.

    Args:
        module: The module, changed in place.
        readers: Values that convolutions read, channels on axis 1.
        tops: f32[C], the largest absolute value of every channel, of values of four and other axes.
    """
    coupling = Coupling(module)
    done: set[Value] = set()
    count = 0
    for x in readers:
        if x in done:
            continue
        size = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
        found = plan_factor(coupling, x, 1, np.ones(size)) if isinstance(size, int) else None
        if found is None or isinstance(found, Refused):
            continue
        for plan in found:
            done.update(plan.powers)
            numbers = _numbers(coupling, plan, tops)
            if numbers is not None:
                nodes = tuple(node for node in plan.nodes if node.op is not activation.clip)
                factor = Factor(plan.factor.leaves, numbers)
                count += bool(apply_plan(coupling, replace(plan, factor=factor, nodes=nodes)))
    return count


def _numbers(coupling: Coupling, plan: ScalePlan, tops: Mapping[Value, Array]) -> Array | None:
    """Returns what every channel is multiplied by, None where nothing is to be gained."""
    largest = np.zeros(plan.factor.numbers.shape)
    for value, power in plan.powers.items():
        if value not in tops or not value.rank:
            continue
        held = places_of(plan.factor, coupling.axes(value))
        if power != 1 or any(axes != [1] for axes in held):
            return None
        shape = [1] * (value.rank or 0)
        shape[1] = -1
        top = reach(plan.factor, coupling.axes(value), tops[value].reshape(shape))
        largest = np.maximum(largest, top)
    whole = float(largest.max(initial=0))
    if not whole or not all(_keeps(node, whole) for node in plan.nodes):
        return None
    numbers: Array = np.minimum((whole / np.maximum(largest, 1e-12)) ** _STRENGTH, _LIMIT)
    return numbers


def _keeps(node: Node, top: float) -> bool:
    """Whether values up to `top`, made larger but not beyond it, pass as they are."""
    if node.op is not activation.clip:
        return True
    low, high = node.static("min"), node.static("max")
    below = low in (0, None) or (isinstance(low, int | float) and low <= -top)
    return below and (high is None or (isinstance(high, int | float) and high >= top * (1 - 1e-6)))
