"""Importers of ATen overloads by family, assembled by explicit concatenation."""

from __future__ import annotations

from regraft.frontends.torch.call import Import
from regraft.frontends.torch.ops import (
    activation,
    antialias,
    arithmetic,
    attention,
    bags,
    cast,
    cells,
    complex_functions,
    complex_numbers,
    conv,
    creation,
    distance,
    elementwise,
    fourier,
    image,
    indexing,
    linalg,
    logical,
    loss,
    norm,
    pool,
    random,
    reduce,
    repeat,
    rnn,
    running,
    scatter,
    selecting,
    shape,
    short_time,
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
    running.IMPORTS,
    bags.IMPORTS,
    distance.IMPORTS,
    loss.IMPORTS,
)

_FORMS = {**complex_numbers.FORMS, **complex_functions.FUNCTIONS}

FAMILIES: tuple[tuple[Import, ...], ...] = (
    *(complex_numbers.complex_aware(family, _FORMS) for family in _REAL_OR_COMPLEX),
    complex_numbers.IMPORTS,
    fourier.IMPORTS,
    short_time.IMPORTS,
)
