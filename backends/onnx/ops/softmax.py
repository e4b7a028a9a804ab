"""Emitters of softmax, log_softmax, hardmax and the losses made of them."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, direct
from regraft.ir.ops import loss, softmax

EMITS: tuple[Emit, ...] = (
    Emit(softmax.softmax, {13: direct("Softmax", "axis")}),
    Emit(softmax.log_softmax, {13: direct("LogSoftmax", "axis")}),
    Emit(softmax.hardmax, {13: direct("Hardmax", "axis")}),
    Emit(
        loss.nll_loss,
        {13: direct("NegativeLogLikelihoodLoss", "reduction", "ignore_index")},
    ),
)
