"""Importers of ATen overloads by family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.torch.call import Import
from regraft.frontends.torch.ops import (
    activation,
    antialias,
    arithmetic,
    attention,
    cast,
    cells,
    complex_numbers,
    conv,
    creation,
    elementwise,
    fourier,
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

_REAL_OR_COMPLEX: tuple[tuple[Import, ...], ...] = (
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
    antialias.IMPORTS,
    rnn.IMPORTS,
    cells.IMPORTS,
    shape.IMPORTS,
    slicing.IMPORTS,
    repeat.IMPORTS,
    indexing.IMPORTS,
    scatter.IMPORTS,
    selecting.IMPORTS,
    creation.IMPORTS,
    random.IMPORTS,
)

FAMILIES: tuple[tuple[Import, ...], ...] = (
    *(complex_numbers.complex_aware(family) for family in _REAL_OR_COMPLEX),
    complex_numbers.IMPORTS,
    fourier.IMPORTS,
)
