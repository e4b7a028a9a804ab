"""Legalization for ONNX Runtime: forms at sites, chosen by a measured cost table."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.onnx.legalize.attention import AttentionSite
from regraft.backends.onnx.legalize.costs import CostTable, read_table, shipped_table
from regraft.backends.onnx.legalize.dense import GeluSite, ResidualNormSite
from regraft.backends.onnx.legalize.legalizer import OrtLegalizer
from regraft.backends.onnx.legalize.site import Site

SITES: tuple[Site, ...] = (AttentionSite(), ResidualNormSite(), GeluSite())
"""Where ONNX Runtime offers more than one form."""

TARGETS = ("ort-cpu",)
"""Targets with a cost table."""


def legalizers(tables: Mapping[str, CostTable] | None = None) -> dict[str, OrtLegalizer]:
    """Returns the legalizer of every target.

    Args:
        tables: Measured tables by target, in place of the shipped ones.
    """
    found = {}
    for target in TARGETS:
        table = (tables or {}).get(target) or shipped_table(target) or CostTable(target, {}, ())
        found[target] = OrtLegalizer(table, SITES)
    return found


__all__ = ["SITES", "TARGETS", "CostTable", "OrtLegalizer", "legalizers", "read_table",
           "shipped_table"]  # fmt: skip
