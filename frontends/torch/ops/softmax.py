"""Importers of softmax, log-softmax, and running sums and products."""

from __future__ import annotations

from regraft.frontends.torch.call import CallImport, Import, Importer, row
from regraft.ir.graph import Value
from regraft.ir.ops import cumulative, softmax
from regraft.ir.ops.reshaping import reshape
from regraft.ir.opspec import OpSpec


def _along(c: CallImport, spec: OpSpec, x: Value) -> Value:
    """Returns an operator along the axis `dim`; a 0-d tensor counts as one element."""
    if not x.rank:
        single = c.b.op(spec, c.b.op(reshape, x, shape=(1,)), axis=0)
        return c.b.op(reshape, single, shape=())
    return c.b.op(spec, x, axis=c.axis("dim", x.rank))


def _operator(spec: OpSpec) -> Importer:
    return lambda c: _along(c, spec, c.operand("self"))


IMPORTS: tuple[Import, ...] = (
    row(
        _operator(softmax.softmax), "aten.softmax.int", "aten._softmax.default",
        "aten.special_softmax.default",
    ),
    row(
        _operator(softmax.log_softmax), "aten.log_softmax.int", "aten._log_softmax.default",
        "aten.special_log_softmax.default",
    ),
    row(_operator(cumulative.cumsum), "aten.cumsum.default"),
    row(_operator(cumulative.cumprod), "aten.cumprod.default"),
)  # fmt: skip
