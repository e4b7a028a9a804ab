"""Emitters of detection operators."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, direct
from regraft.ir.ops import detection as ops

EMITS: tuple[Emit, ...] = (
    Emit(ops.non_max_suppression, {13: direct("NonMaxSuppression", "center_point_box")}),
)
