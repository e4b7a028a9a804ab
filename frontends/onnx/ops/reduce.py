"""Importers of reductions: `axes` became an operand at opset 13 (ReduceSum) and 18 (the others)."""

from __future__ import annotations

from typing import Any

from regraft.frontends.onnx.importer import Import, Importer, NodeImport
from regraft.ir.graph import Value
from regraft.ir.ops import reduce
from regraft.ir.opspec import OpSpec


def _static(item: NodeImport, spec: OpSpec, axes: tuple[int, ...] | None) -> Value:
    """Creates a reduction over axes known now; None reduces all of them."""
    rank = item.rank()
    if rank is not None:
        if axes is None:
            axes = tuple(range(rank))
        elif not all(-rank <= axis < rank for axis in axes):
            raise item.error(f"axes {list(axes)} are out of range for rank {rank}")
        else:
            axes = tuple(sorted({axis % rank for axis in axes}))
    keepdims = bool(item.attr("keepdims", 1))
    return item.b.op(spec, item.require(0), axes=axes, keepdims=keepdims)


def _attribute(spec: OpSpec) -> Importer:
    def run(item: NodeImport) -> Value:
        # an empty list means all axes, as in runtimes
        return _static(item, spec, item.attr("axes") or None)

    return run


def _operand(spec: OpSpec) -> Importer:
    def run(item: NodeImport) -> Value:
        operand, axes = item.either(1)
        empty_is_none = bool(item.attr("noop_with_empty_axes", 0))
        if operand is None:
            return _static(item, spec, _all_or_none(axes, empty_is_none=empty_is_none))
        return item.b.op(
            spec, item.require(0), operand,
            keepdims=bool(item.attr("keepdims", 1)), empty_is_none=empty_is_none,
        )  # fmt: skip

    return run


def _all_or_none(axes: Any, *, empty_is_none: bool) -> tuple[int, ...] | None:
    if axes is None:
        axes = ()
    elif isinstance(axes, int):
        axes = (axes,)
    return axes if axes or empty_is_none else None


def _row(op_type: str, spec: OpSpec) -> Import:
    operand_since = 13 if spec is reduce.reduce_sum else 18
    return Import(op_type, {1: _attribute(spec), operand_since: _operand(spec)})


IMPORTS: tuple[Import, ...] = tuple(
    _row(op_type, spec) for op_type, spec in reduce.BY_ONNX_NAME.items()
)
