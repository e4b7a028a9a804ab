"""Emitters by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit
from regraft.backends.torch.ops import (
    activation,
    arithmetic,
    attention,
    cast,
    conv,
    fill,
    functions,
    image,
    indexing,
    linalg,
    logical,
    moe,
    movement,
    norm,
    pool,
    quant,
    reduce,
    rnn,
    selecting,
    sequence,
    signal,
    slicing,
)

FAMILIES: tuple[tuple[Emit, ...], ...] = (
    activation.EMITS,
    arithmetic.EMITS,
    attention.EMITS,
    cast.EMITS,
    conv.EMITS,
    fill.EMITS,
    functions.EMITS,
    image.EMITS,
    indexing.EMITS,
    linalg.EMITS,
    logical.EMITS,
    moe.EMITS,
    movement.EMITS,
    norm.EMITS,
    pool.EMITS,
    quant.EMITS,
    reduce.EMITS,
    rnn.EMITS,
    selecting.EMITS,
    sequence.EMITS,
    signal.EMITS,
    slicing.EMITS,
)
