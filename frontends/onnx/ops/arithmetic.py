"""Importers of arithmetic, rounding and elementary functions."""

from __future__ import annotations

from functools import reduce

import numpy as np

from regraft.frontends.onnx.importer import Import, Imported, Importer, NodeImport, direct
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, cast, functions, rounding
from regraft.ir.opspec import OpSpec


def _fold(item: NodeImport, spec: OpSpec) -> Value:
    """Imports a variadic operator as a chain of binary ones."""
    first, *rest = (item.require(idx) for idx in range(len(item.inputs)))
    if not rest:
        return item.b.op(cast.identity, first)
    return reduce(lambda a, b: item.b.op(spec, a, b), rest, first)


def _variadic(spec: OpSpec) -> Importer:
    return lambda item: _fold(item, spec)


def _mean(item: NodeImport) -> Imported:
    dtype = item.require(0).dtype
    if dtype is None:
        return item.opaque()
    total = _fold(item, arithmetic.add)
    count = item.b.constant(np.array(len(item.inputs)), dtype)
    return item.b.op(arithmetic.div, total, count)


def _mod(item: NodeImport) -> Value:
    return item.b.op(
        arithmetic.mod, item.require(0), item.require(1), fmod=bool(item.attr("fmod", 0))
    )


def _is_inf(item: NodeImport) -> Value:
    return item.b.op(
        functions.is_inf,
        item.require(0),
        positive=bool(item.attr("detect_positive", 1)),
        negative=bool(item.attr("detect_negative", 1)),
    )


IMPORTS: tuple[Import, ...] = (
    # before 7 the binary operators broadcast by attributes
    Import("Add", {7: direct(arithmetic.add)}),
    Import("Sub", {7: direct(arithmetic.sub)}),
    Import("Mul", {7: direct(arithmetic.mul)}),
    Import("Div", {7: direct(arithmetic.div)}),
    Import("Pow", {7: direct(arithmetic.pow_)}),
    Import("Mod", {10: _mod}),
    Import("Min", {1: _variadic(arithmetic.min_)}),
    Import("Max", {1: _variadic(arithmetic.max_)}),
    Import("Sum", {1: _variadic(arithmetic.add)}),
    Import("Mean", {1: _mean}),
    Import("Neg", {1: direct(arithmetic.neg)}),
    Import("Abs", {1: direct(arithmetic.abs_)}),
    Import("Sign", {9: direct(arithmetic.sign)}),
    Import("Floor", {1: direct(rounding.floor)}),
    Import("Ceil", {1: direct(rounding.ceil)}),
    Import("Round", {11: direct(rounding.round_)}),
    Import("Exp", {1: direct(functions.exp)}),
    Import("Log", {1: direct(functions.log)}),
    Import("Sqrt", {1: direct(functions.sqrt)}),
    Import("Reciprocal", {1: direct(functions.reciprocal)}),
    Import("Erf", {9: direct(functions.erf)}),
    Import("Sin", {7: direct(functions.sin)}),
    Import("Cos", {7: direct(functions.cos)}),
    Import("Tan", {7: direct(functions.tan)}),
    Import("Asin", {7: direct(functions.asin)}),
    Import("Acos", {7: direct(functions.acos)}),
    Import("Atan", {7: direct(functions.atan)}),
    Import("Sinh", {9: direct(functions.sinh)}),
    Import("Cosh", {9: direct(functions.cosh)}),
    Import("Tanh", {1: direct(functions.tanh)}),
    Import("Asinh", {9: direct(functions.asinh)}),
    Import("Acosh", {9: direct(functions.acosh)}),
    Import("Atanh", {9: direct(functions.atanh)}),
    Import("IsNaN", {9: direct(functions.is_nan)}),
    Import("IsInf", {10: _is_inf}),
)
