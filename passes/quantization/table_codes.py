"""Tables that are read by index, as int8 with a scale per row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.module import Module
from regraft.passes.protocol import LayerError, Skip
from regraft.passes.quantization.encoding import rounded_rows, rows_error
from regraft.passes.quantization.refusals import check_finite
from regraft.passes.quantization.rewrite import write_table
from regraft.passes.quantization.sites import FLOATS, tables

_ANY_SIZE = 1 << 62
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
        array = constant_of(site.table, _ANY_SIZE)
        if array is None:
            raise AssertionError("a table is constant")
        floats = np.asarray(array, np.float32)
        check_finite(site.name, floats)
        codes, scale = rounded_rows(floats)
        error = rows_error(floats, codes, scale)
        num_bytes = codes.nbytes + scale.nbytes
        found.append(LayerError(site.name, "int8", error, False, num_bytes, array.nbytes))
        del floats, array
        write_table(Builder(module.graph, site.node, site.node.loc), site, codes, scale, folder)
    return found, skipped
