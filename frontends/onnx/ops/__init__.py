"""Importers by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import
from regraft.frontends.onnx.ops import elementwise

FAMILIES: tuple[tuple[Import, ...], ...] = (elementwise.IMPORTS,)
