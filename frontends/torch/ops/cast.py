"""Importers of element types, and of calls that only move, copy or relabel a tensor."""

from __future__ import annotations

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.elementwise import keep
from regraft.frontends.torch.stopping import stopped
from regraft.ir.graph import Value
from regraft.ir.ops.cast import bitcast
from regraft.ir.ops.repeating import expand


def _to(c: CallImport) -> Value:
    return c.cast(c.value("self"), c.dtype)


def _view_dtype(c: CallImport) -> Value:
    x = c.value("self")
    if x.dtype is None or x.dtype.bits != c.dtype.bits:
        raise UnsupportedCallError(f"elements of {x.dtype} seen as {c.dtype}")
    return x if x.dtype is c.dtype else c.b.op(bitcast, x, to=c.dtype)


def _detach(c: CallImport) -> Value:
    return stopped(c.b, c.value("self"))


def _copy(c: CallImport) -> Value:
    value = c.operand("src")
    return value if value.shape == c.shape else c.b.op(expand, value, shape=c.shape)


IMPORTS: tuple[Import, ...] = (
    row(
        _to, "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.to.other",
        "aten.to.prim_Device", "aten.to.prim_dtype", "aten.to.prim_other",
        "aten._to_copy.default", "aten.type_as.default", "aten._autocast_to_full_precision.default",
        "aten._autocast_to_reduced_precision.default",
    ),
    row(_view_dtype, "aten.view.dtype"),
    row(
        keep, "aten.contiguous.default", "aten.clone.default", "aten.alias.default",
        "aten.alias_copy.default", "aten.lift.default", "aten.lift_fresh.default",
        "aten.lift_fresh_copy.default", "aten.resolve_conj.default", "aten.resolve_neg.default",
    ),
    row(_detach, "aten.detach.default", "aten.detach_copy.default"),
    row(_copy, "aten.copy.default"),
)  # fmt: skip
