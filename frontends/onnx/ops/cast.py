"""Importers of casts and of operators that keep a value: Identity, Dropout at inference."""

from __future__ import annotations

import numpy as np

from regraft.frontends.onnx.importer import Import, Imported, NodeImport, direct
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.ops.cast import bitcast, cast, identity
from regraft.ir.ops.fill import constant_of_shape
from regraft.ir.types import DType


def _target(item: NodeImport) -> DType | None:
    to = item.attr("to")
    if to is None:
        raise item.error("attribute `to` is missing")
    return DTYPES.get(to)


def _cast_to(item: NodeImport, to: DType | None) -> Imported:
    if to is None:
        return item.opaque()
    return item.b.op(
        cast,
        item.require(0),
        to=to,
        saturate=bool(item.attr("saturate", 1)),
        round_mode=item.attr("round_mode", "up"),
    )


def _cast(item: NodeImport) -> Imported:
    return _cast_to(item, _target(item))


def _cast_like(item: NodeImport) -> Imported:
    return _cast_to(item, item.require(1).dtype)


def _bitcast(item: NodeImport) -> Imported:
    to = _target(item)
    return item.opaque() if to is None else item.b.op(bitcast, item.require(0), to=to)


def _identity_and_mask(item: NodeImport, mask: DType | None, value: bool) -> Imported:
    """Imports an inactive dropout: the data, and a mask of one value."""
    x = item.require(0)
    if not item.has_output(1):
        return item.b.op(identity, x)
    if x.shape is None or mask is None:
        return item.opaque()
    fill = np.full(1, value).astype(mask.numpy)
    return item.b.op(identity, x), item.b.op(constant_of_shape, shape=x.shape, value=fill)


def _dropout_7(item: NodeImport) -> Imported:
    # the specification leaves the mask of versions 7 and 10 open; ONNX Runtime gives zeros
    return _identity_and_mask(item, item.require(0).dtype, False)


def _dropout_10(item: NodeImport) -> Imported:
    return _identity_and_mask(item, DType.BOOL, False)


def _dropout(item: NodeImport) -> Imported:
    if item.input(2) is not None:
        training = item.const(2)
        if training is None:
            return item.opaque()
        ratio = item.const(1) if item.input(1) is not None else np.array(0.5)
        # dropping nothing also scales by nothing
        if training.any() and (ratio is None or ratio.any()):
            return item.opaque()
    return _identity_and_mask(item, DType.BOOL, True)


IMPORTS: tuple[Import, ...] = (
    Import("Cast", {6: _cast}),
    Import("CastLike", {15: _cast_like}),
    Import("BitCast", {26: _bitcast}),
    Import("Identity", {1: direct(identity)}),
    Import("Dropout", {7: _dropout_7, 10: _dropout_10, 12: _dropout}),
)
