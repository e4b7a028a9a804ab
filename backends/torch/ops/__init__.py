"""Emitters by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit

FAMILIES: tuple[tuple[Emit, ...], ...] = ()
