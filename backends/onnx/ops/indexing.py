"""Emitters of gathering, scattering and choices by value."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.graph import Node
from regraft.ir.ops import gathering, scattering, selecting

_REDUCTION_OPSET = {"none": 13, "add": 16, "mul": 16, "min": 18, "max": 18}


def _reduction_opset(node: Node) -> int:
    return _REDUCTION_OPSET[node.attrs["reduction"]]


def _scatter_elements(e: EmitContext) -> None:
    reduction = e.node.attrs["reduction"]
    e.emit(
        "ScatterElements", e.inputs,
        axis=e.node.attrs["axis"], reduction=None if reduction == "none" else reduction,
    )  # fmt: skip


def _scatter_nd(e: EmitContext) -> None:
    reduction = e.node.attrs["reduction"]
    e.emit("ScatterND", e.inputs, reduction=None if reduction == "none" else reduction)


def _top_k(e: EmitContext) -> None:
    attrs, k = e.node.attrs, e.node.attrs["k"]
    count = e.param("k") if k is None else e.ints((k,))
    e.emit(
        "TopK", [e.name(e.node.inputs[0]), count], [e.name(v) for v in e.node.outputs],
        axis=attrs["axis"], largest=attrs["largest"], sorted=attrs["sorted"],
    )  # fmt: skip


def _one_hot(e: EmitContext) -> None:
    indices, _, values = e.node.inputs
    e.emit("OneHot", [e.name(indices), e.param("depth"), e.name(values)], axis=e.node.attrs["axis"])


EMITS: tuple[Emit, ...] = (
    Emit(gathering.gather, {13: direct("Gather", "axis")}),
    Emit(gathering.gather_elements, {13: direct("GatherElements", "axis")}),
    Emit(gathering.gather_nd, {13: direct("GatherND", "batch_dims")}),
    Emit(scattering.scatter_elements, {13: _scatter_elements}, _reduction_opset),
    Emit(scattering.scatter_nd, {13: _scatter_nd}, _reduction_opset),
    Emit(scattering.tensor_scatter, {24: direct("TensorScatter", "axis", "mode")}),
    Emit(selecting.top_k, {13: _top_k}),
    Emit(selecting.arg_max, {13: direct("ArgMax", "axis", "keepdims", "select_last_index")}),
    Emit(selecting.arg_min, {13: direct("ArgMin", "axis", "keepdims", "select_last_index")}),
    Emit(selecting.one_hot, {13: _one_hot}),
    Emit(selecting.compress, {13: direct("Compress", "axis")}),
    Emit(selecting.non_zero, {13: direct("NonZero")}),
    Emit(selecting.unique, {13: direct("Unique", "axis", "sorted")}),
)
