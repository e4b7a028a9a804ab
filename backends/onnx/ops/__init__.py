"""Emitters by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit
from regraft.backends.onnx.ops import (
    activation,
    arithmetic,
    cast,
    control,
    fill,
    linalg,
    logical,
    random,
    reduce,
    rnn,
    softmax,
)

FAMILIES: tuple[tuple[Emit, ...], ...] = (
    activation.EMITS,
    arithmetic.EMITS,
    cast.EMITS,
    fill.EMITS,
    logical.EMITS,
    random.EMITS,
    control.EMITS,
    rnn.EMITS,
    linalg.EMITS,
    reduce.EMITS,
    softmax.EMITS,
)
