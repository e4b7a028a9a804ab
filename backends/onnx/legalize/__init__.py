"""Legalization: for ONNX Runtime forms chosen by a measured cost table, for `onnx` bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.backends.onnx import ort_experts_ops, ort_recurrence_ops, ort_table_ops
from regraft.backends.onnx.emitter import Emit
from regraft.backends.onnx.legalize.attention import AttentionSite
from regraft.backends.onnx.legalize.costs import CostTable, read_table, shipped_table
from regraft.backends.onnx.legalize.dense import GeluSite, ResidualNormSite
from regraft.backends.onnx.legalize.experts import ExpertsSite
from regraft.backends.onnx.legalize.legalizer import OrtLegalizer
from regraft.backends.onnx.legalize.quantized import RULES
from regraft.backends.onnx.legalize.recurrence import RecurrenceSite
from regraft.backends.onnx.legalize.segments import RULES as SEGMENT_RULES
from regraft.backends.onnx.legalize.site import Site
from regraft.backends.onnx.legalize.standard import PROFILE, StandardLegalizer
from regraft.backends.onnx.legalize.window import RULES as WINDOW_RULES
from regraft.backends.onnx.ops import FAMILIES

SITES: tuple[Site, ...] = (
    AttentionSite(), RecurrenceSite(), ExpertsSite(), ResidualNormSite(), GeluSite(),
)  # fmt: skip
"""Where ONNX Runtime offers more than one form."""

_RULES = (
    *RULES, *ort_table_ops.RULES, *SEGMENT_RULES, *ort_recurrence_ops.RULES, *WINDOW_RULES,
    *ort_experts_ops.RULES,
)  # fmt: skip
"""Forms that kernels need, where there is no choice."""

MEASURED = ("ort-cpu",)
"""Targets with a cost table."""

TARGETS = (*MEASURED, PROFILE)
"""Targets with a legalization."""


def legalizers(
    tables: Mapping[str, CostTable] | None = None,
    families: Sequence[tuple[Emit, ...]] = FAMILIES,
) -> dict[str, OrtLegalizer | StandardLegalizer]:
    """Returns the legalizer of every target.

    Args:
        tables: Measured tables by target, in place of the shipped ones.
        families: Emitters, those of plugins among them.
    """
    found: dict[str, OrtLegalizer | StandardLegalizer] = {PROFILE: StandardLegalizer(families)}
    for target in MEASURED:
        table = (tables or {}).get(target) or shipped_table(target) or CostTable(target, {}, ())
        found[target] = OrtLegalizer(table, SITES, rules=_RULES)
    return found


__all__ = ["MEASURED", "SITES", "TARGETS", "CostTable", "OrtLegalizer", "legalizers", "read_table",
           "shipped_table"]  # fmt: skip
