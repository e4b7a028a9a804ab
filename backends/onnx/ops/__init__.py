"""Emitters by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit
from regraft.backends.onnx.ops import (
    activation,
    arithmetic,
    attention,
    cast,
    control,
    conv,
    detection,
    fill,
    image,
    indexing,
    linalg,
    logical,
    movement,
    norm,
    pool,
    quant,
    random,
    reduce,
    rnn,
    signal,
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
    conv.EMITS,
    image.EMITS,
    norm.EMITS,
    pool.EMITS,
    quant.EMITS,
    movement.EMITS,
    indexing.EMITS,
    attention.EMITS,
    signal.EMITS,
    detection.EMITS,
)
