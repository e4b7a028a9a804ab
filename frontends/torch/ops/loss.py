"""Importers of losses that PyTorch computes in one call."""

from __future__ import annotations

from regraft.frontends.torch.call import CallImport, Import, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import shape_of
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical
from regraft.ir.ops.cumulative import cumprod
from regraft.ir.ops.gathering import gather_elements
from regraft.ir.ops.reduce import reduce_mean, reduce_sum
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.ops.scattering import scatter_elements
from regraft.ir.types import DType

_NONE, _MEAN = 0, 1


def _multilabel_margin(c: CallImport) -> Value:
    """How far labels `x[t]` fail to exceed the other classes by 1; labels end at the first -1.

    Args of the call: self `[B, C]` or `[C]`, target like it.
    """
    x, target = c.value("self"), c.cast(c.value("target"), DType.I64)
    whole = len(shape_of(x)) == 2
    if not whole:
        x, target = c.b.op(unsqueeze, x, axes=(0,)), c.b.op(unsqueeze, target, axes=(0,))
    zero, one = c.number(0, DType.I64), c.number(1, DType.I64)
    given = c.cast(c.b.op(logical.greater_or_equal, target, zero), DType.I32)
    is_label = c.cast(c.b.op(cumprod, given, axis=1), c.dtype)  # 1 before the first -1
    target = c.b.op(arithmetic.max_, target, zero)
    nothing = expanded(c, c.number(0.0, c.dtype), shape_of(x))
    hits = c.b.op(scatter_elements, nothing, target, is_label, axis=1, reduction="add")
    is_other = c.cast(c.b.op(logical.equal, hits, c.number(0.0, c.dtype)), c.dtype)
    labels = c.b.op(gather_elements, x, target, axis=1)
    gap = c.b.op(arithmetic.sub, c.b.op(unsqueeze, x, axes=(1,)),
                 c.b.op(unsqueeze, labels, axes=(2,)))  # [B, label, class]  # fmt: skip
    short = c.b.op(arithmetic.add, gap, c.cast(one, c.dtype))
    short = c.b.op(arithmetic.max_, short, c.number(0.0, c.dtype))
    pairs = c.b.op(arithmetic.mul, c.b.op(unsqueeze, is_label, axes=(2,)),
                   c.b.op(unsqueeze, is_other, axes=(1,)))  # fmt: skip
    total = c.b.op(reduce_sum, c.b.op(arithmetic.mul, short, pairs), axes=(1, 2), keepdims=False)
    size = c.number(shape_of(x)[1], c.dtype)
    loss = c.b.op(arithmetic.div, total, size)
    reduction = c.attr("reduction")
    if reduction == _NONE:
        return loss if whole else c.b.op(squeeze, loss, axes=(0,))
    return c.b.op(reduce_mean if reduction == _MEAN else reduce_sum, loss, axes=(0,),
                  keepdims=False)  # fmt: skip


IMPORTS: tuple[Import, ...] = (row(_multilabel_margin, "aten.multilabel_margin_loss.default"),)
