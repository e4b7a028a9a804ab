"""How bounds go through operators: the table of all rules."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.opspec import OpSpec
from regraft.passes.analysis import interval_movement, interval_pointwise, interval_sums
from regraft.passes.analysis.bounds import IntervalRule

RULES: Mapping[OpSpec, IntervalRule] = {
    **interval_pointwise.RULES,
    **interval_sums.RULES,
    **interval_movement.RULES,
}
