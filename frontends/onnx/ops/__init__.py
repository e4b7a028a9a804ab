"""Importers by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import
from regraft.frontends.onnx.ops import (
    control,
    elementwise,
)

FAMILIES: tuple[tuple[Import, ...], ...] = (
    elementwise.IMPORTS,
    control.IMPORTS,
)
