"""Importers of gathering, scattering and choices by value."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.onnx.importer import Import, Importer, NodeImport, direct
from regraft.frontends.onnx.ops.movement import normal_axis
from regraft.ir.graph import Value
from regraft.ir.ops import gathering, scattering, selecting
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType


def _along_axis(spec: OpSpec, default: int = 0) -> Importer:
    """Returns an importer of an operator on one axis of its first operand."""

    def run(item: NodeImport) -> Value:
        values = {name: value for name, value in item.attrs.items() if name in spec.all_attrs}
        values["axis"] = normal_axis(item.attr("axis", default), item.rank())
        return item.b.op(spec, *item.inputs, **values)

    return run


def _top_k_1(item: NodeImport) -> Sequence[Value]:
    return _top_k(item, None, item.attr("k"))


def _top_k_10(item: NodeImport) -> Sequence[Value]:
    operand, content = item.either(1)
    return _top_k(item, operand, content[0] if isinstance(content, tuple) else content)


def _top_k(item: NodeImport, operand: Value | None, k: object) -> Sequence[Value]:
    return item.b.multi(
        selecting.top_k, item.require(0), operand,
        k=k,
        axis=normal_axis(item.attr("axis", -1), item.rank()),
        largest=bool(item.attr("largest", 1)),
        sorted=bool(item.attr("sorted", 1)),
    )  # fmt: skip


def _arg(spec: OpSpec) -> Importer:
    def run(item: NodeImport) -> Value:
        return item.b.op(
            spec, item.require(0),
            axis=normal_axis(item.attr("axis", 0), item.rank()),
            keepdims=bool(item.attr("keepdims", 1)),
            select_last_index=bool(item.attr("select_last_index", 0)),
        )  # fmt: skip

    return run


def _one_hot(item: NodeImport) -> Value:
    indices, depth, values = item.require(0), item.require(1), item.require(2)
    rank = None if indices.rank is None else indices.rank + 1
    axis = normal_axis(item.attr("axis", -1), rank)
    operand, content = item.either(1)
    if content is None or depth.dtype is not DType.I64:  # the runtime has no kernel for other mixes
        return item.b.op(selecting.one_hot, indices, depth, values, axis=axis)
    size = content[0] if isinstance(content, tuple) else content
    return item.b.op(selecting.one_hot, indices, operand, values, depth=size, axis=axis)


def _compress(item: NodeImport) -> Value:
    axis = item.attr("axis")
    axis = None if axis is None else normal_axis(axis, item.rank())
    return item.b.op(selecting.compress, item.require(0), item.require(1), axis=axis)


def _unique(item: NodeImport) -> Sequence[Value]:
    axis = item.attr("axis")
    return item.b.multi(
        selecting.unique, item.require(0),
        num_outputs=item.num_outputs,
        axis=None if axis is None else normal_axis(axis, item.rank()),
        sorted=bool(item.attr("sorted", 1)),
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    Import("Gather", {1: _along_axis(gathering.gather)}),
    Import("GatherElements", {11: _along_axis(gathering.gather_elements)}),
    Import("GatherND", {11: direct(gathering.gather_nd, "batch_dims")}),
    Import("Scatter", {9: _along_axis(scattering.scatter_elements)}),
    Import("ScatterElements", {11: _along_axis(scattering.scatter_elements)}),
    Import("ScatterND", {11: direct(scattering.scatter_nd, "reduction")}),
    Import("TensorScatter", {24: _along_axis(scattering.tensor_scatter, default=-2)}),
    Import("TopK", {1: _top_k_1, 10: _top_k_10}),
    Import("ArgMax", {1: _arg(selecting.arg_max)}),
    Import("ArgMin", {1: _arg(selecting.arg_min)}),
    Import("OneHot", {9: _one_hot}),
    Import("Compress", {9: _compress}),
    Import("NonZero", {9: direct(selecting.non_zero)}),
    Import("Unique", {11: _unique}),
)
