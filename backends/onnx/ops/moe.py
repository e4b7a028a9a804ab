"""Emitter of mixture of experts: standard operators, every expert over every token."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.ir.ops import moe

EMITS: tuple[Emit, ...] = (Emit(moe.moe, {13: EmitContext.inline}),)
