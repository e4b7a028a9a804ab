"""Tables that are read by index, as int8 with a scale per row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regraft.ir.builder import Builder
from regraft.ir.constants import weight_of
from regraft.ir.module import Module
from regraft.passes.protocol import LayerError, Skip
from regraft.passes.quantization.rewrite import write_table
from regraft.passes.quantization.rounded_files import round_table
from regraft.passes.quantization.sites import FLOATS, tables

_SMALL = 0.005
"""Share of all numbers below which a table stays in float: two rows of token types of a sentence
encoder, 3 kB, took sixty times as much of its cosine in int8 as the 47 MB of its words."""


def round_tables(
    module: Module, is_kept: Callable[[str], bool], folder: Path | None, num_others: int
) -> tuple[list[LayerError], list[Skip]]:
    """Rewrites tables; returns what rounding costs each, of the table itself, and those left.

    Args:
        module: The module, changed in place.
        is_kept: Whether the table of a name stays in float.
        folder: For large codes; default: the system's temporary folder.
        num_others: Numbers of the weights of all linear layers.
    """
    found: list[LayerError] = []
    skipped: list[Skip] = []
    sites = list(tables(module.graph, FLOATS))
    total = num_others + sum(site.num_numbers for site in sites)
    for site in sites:
        if is_kept(site.name):
            skipped.append(Skip(site.name, "kept by option"))
            continue
        if site.num_numbers < _SMALL * total:
            skipped.append(Skip(site.name, "a table of few numbers"))
            continue
        table = weight_of(site.table)
        if table is None:
            raise AssertionError("a table is constant")
        codes, scale, error = round_table(site.name, table, folder)
        num_bytes = codes.nbytes + scale.nbytes
        found.append(LayerError(site.name, "int8", error, False, num_bytes, table.nbytes))
        write_table(Builder(module.graph, site.node, site.node.loc), site, codes, scale)
    return found, skipped
