"""Emitters by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit
from regraft.backends.onnx.ops import (
    control,
    elementwise,
)

FAMILIES: tuple[tuple[Emit, ...], ...] = (
    elementwise.EMITS,
    control.EMITS,
)
