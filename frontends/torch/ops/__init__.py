"""Importers of ATen overloads by family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.torch.call import Import
from regraft.frontends.torch.ops import (
    activation,
    arithmetic,
    attention,
    cast,
    conv,
    creation,
    elementwise,
    image,
    indexing,
    linalg,
    logical,
    norm,
    pool,
    random,
    reduce,
    repeat,
    rnn,
    scatter,
    selecting,
    shape,
    slicing,
    softmax,
)

FAMILIES: tuple[tuple[Import, ...], ...] = (
    elementwise.IMPORTS,
    arithmetic.IMPORTS,
    logical.IMPORTS,
    activation.IMPORTS,
    cast.IMPORTS,
    reduce.IMPORTS,
    softmax.IMPORTS,
    linalg.IMPORTS,
    attention.IMPORTS,
    norm.IMPORTS,
    conv.IMPORTS,
    pool.IMPORTS,
    image.IMPORTS,
    rnn.IMPORTS,
    shape.IMPORTS,
    slicing.IMPORTS,
    repeat.IMPORTS,
    indexing.IMPORTS,
    scatter.IMPORTS,
    selecting.IMPORTS,
    creation.IMPORTS,
    random.IMPORTS,
)
