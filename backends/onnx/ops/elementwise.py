"""Emitters of element-wise operators."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, direct
from regraft.ir.ops import elementwise as ops

EMITS: tuple[Emit, ...] = (
    Emit(ops.add, {13: direct("Add")}),
    Emit(ops.relu, {13: direct("Relu")}),
)
