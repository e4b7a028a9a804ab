"""Importers of random tensors; the `Like` forms take the shape of their operand."""

from __future__ import annotations

from typing import Any

from regraft.frontends.onnx.importer import Import, Imported, Importer, NodeImport
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.dims import Shape
from regraft.ir.ops import random as ops
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType


def _given(item: NodeImport, *names: str) -> dict[str, Any]:
    return {name: item.attrs[name] for name in names if name in item.attrs}


def _dtype(item: NodeImport, default: DType | None) -> DType | None:
    code = item.attr("dtype")
    if code is None:
        return default
    if code not in DTYPES:
        raise item.error(f"unknown element type {code}")
    return DTYPES[code]


def _generator(spec: OpSpec, *names: str) -> tuple[Importer, Importer]:
    """Returns the importers of the form with a shape attribute and of the `Like` form."""

    def make(item: NodeImport, shape: Shape | None, dtype: DType | None) -> Imported:
        if shape is None or dtype is None:
            return item.opaque()
        return item.b.op(spec, shape=shape, dtype=dtype, **_given(item, "seed", *names))

    def run(item: NodeImport) -> Imported:
        shape = item.attr("shape")
        if shape is None:
            raise item.error("attribute `shape` is missing")
        return make(item, shape, _dtype(item, DType.F32))

    def run_like(item: NodeImport) -> Imported:
        x = item.require(0)
        return make(item, x.shape, _dtype(item, x.dtype))

    return run, run_like


def _multinomial(item: NodeImport) -> Imported:
    return item.b.op(
        ops.multinomial, item.require(0), dtype=_dtype(item, DType.I32),
        **_given(item, "seed", "sample_size"),
    )  # fmt: skip


def _bernoulli(item: NodeImport) -> Imported:
    return item.b.op(
        ops.bernoulli, item.require(0), dtype=_dtype(item, None), **_given(item, "seed")
    )


_NORMAL, _NORMAL_LIKE = _generator(ops.random_normal, "mean", "scale")
_UNIFORM, _UNIFORM_LIKE = _generator(ops.random_uniform, "low", "high")

IMPORTS: tuple[Import, ...] = (
    Import("RandomNormal", {1: _NORMAL}),
    Import("RandomNormalLike", {1: _NORMAL_LIKE}),
    Import("RandomUniform", {1: _UNIFORM}),
    Import("RandomUniformLike", {1: _UNIFORM_LIKE}),
    Import("Multinomial", {7: _multinomial}),
    Import("Bernoulli", {15: _bernoulli}),
)
