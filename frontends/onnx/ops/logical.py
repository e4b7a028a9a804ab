"""Importers of truth values, comparisons, selection and bits."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.ir.graph import Value
from regraft.ir.ops import logical as ops


def _bit_shift(item: NodeImport) -> Value:
    direction = item.attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise item.error(f"direction `{direction}`: expected `LEFT` or `RIGHT`")
    return item.b.op(ops.bit_shift, item.require(0), item.require(1), left=direction == "LEFT")


IMPORTS: tuple[Import, ...] = (
    # before 7 the binary operators broadcast by attributes
    Import("And", {7: direct(ops.logical_and)}),
    Import("Or", {7: direct(ops.logical_or)}),
    Import("Xor", {7: direct(ops.logical_xor)}),
    Import("Not", {1: direct(ops.logical_not)}),
    Import("Equal", {7: direct(ops.equal)}),
    Import("Less", {7: direct(ops.less)}),
    Import("LessOrEqual", {12: direct(ops.less_or_equal)}),
    Import("Greater", {7: direct(ops.greater)}),
    Import("GreaterOrEqual", {12: direct(ops.greater_or_equal)}),
    Import("Where", {9: direct(ops.where)}),
    Import("BitwiseAnd", {18: direct(ops.bitwise_and)}),
    Import("BitwiseOr", {18: direct(ops.bitwise_or)}),
    Import("BitwiseXor", {18: direct(ops.bitwise_xor)}),
    Import("BitwiseNot", {18: direct(ops.bitwise_not)}),
    Import("BitShift", {11: _bit_shift}),
)
