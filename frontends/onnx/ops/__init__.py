"""Importers by operator family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import
from regraft.frontends.onnx.ops import (
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
    loss,
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

FAMILIES: tuple[tuple[Import, ...], ...] = (
    activation.IMPORTS,
    arithmetic.IMPORTS,
    cast.IMPORTS,
    fill.IMPORTS,
    logical.IMPORTS,
    random.IMPORTS,
    control.IMPORTS,
    rnn.IMPORTS,
    linalg.IMPORTS,
    reduce.IMPORTS,
    softmax.IMPORTS,
    loss.IMPORTS,
    conv.IMPORTS,
    image.IMPORTS,
    norm.IMPORTS,
    pool.IMPORTS,
    quant.IMPORTS,
    movement.IMPORTS,
    indexing.IMPORTS,
    attention.IMPORTS,
    signal.IMPORTS,
    detection.IMPORTS,
)
