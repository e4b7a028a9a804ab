"""Importers of element-wise operators."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import, direct
from regraft.ir.ops import elementwise as ops

IMPORTS: tuple[Import, ...] = (
    Import("Add", {7: direct(ops.add)}),
    Import("Relu", {1: direct(ops.relu)}),
)
