"""Importers of ATen overloads by family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.torch.call import Import

FAMILIES: tuple[tuple[Import, ...], ...] = ()
