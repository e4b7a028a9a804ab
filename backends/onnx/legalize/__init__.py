"""Legalization: for ONNX Runtime forms chosen by a measured cost table, for `onnx` bodies."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.onnx.legalize.attention import AttentionSite
from regraft.backends.onnx.legalize.costs import CostTable, read_table, shipped_table
from regraft.backends.onnx.legalize.dense import GeluSite, ResidualNormSite
from regraft.backends.onnx.legalize.legalizer import OrtLegalizer
from regraft.backends.onnx.legalize.site import Site
from regraft.backends.onnx.legalize.standard import PROFILE, StandardLegalizer

SITES: tuple[Site, ...] = (AttentionSite(), ResidualNormSite(), GeluSite())
"""Where ONNX Runtime offers more than one form."""

MEASURED = ("ort-cpu",)
"""Targets with a cost table."""

TARGETS = (*MEASURED, PROFILE)
"""Targets with a legalization."""


def legalizers(
    tables: Mapping[str, CostTable] | None = None,
) -> dict[str, OrtLegalizer | StandardLegalizer]:
    """Returns the legalizer of every target.

    Args:
        tables: Measured tables by target, in place of the shipped ones.
    """
    found: dict[str, OrtLegalizer | StandardLegalizer] = {PROFILE: StandardLegalizer()}
    for target in MEASURED:
        table = (tables or {}).get(target) or shipped_table(target) or CostTable(target, {}, ())
        found[target] = OrtLegalizer(table, SITES)
    return found


__all__ = ["MEASURED", "SITES", "TARGETS", "CostTable", "OrtLegalizer", "legalizers", "read_table",
           "shipped_table"]  # fmt: skip
