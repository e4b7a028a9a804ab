"""Importer of scaled dot-product attention into the canonical operator."""

from __future__ import annotations

from math import sqrt

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import reshaped, shape_of
from regraft.ir.dims import DimLike, exact_quotient, known_equal, product
from regraft.ir.graph import Value
from regraft.ir.ops.attention import attention
from regraft.ir.ops.reshaping import reshape
from regraft.ir.types import DType

_HEAD_AXES = 3  # heads, length, size


def _attention(c: CallImport) -> Value:
    q, k, v = (c.value(name) for name in ("query", "key", "value"))
    if c.attr("dropout_p"):
        raise UnsupportedCallError("dropout in training is random: call `model.eval()` first")
    head_size = shape_of(q)[-1]
    scale = c.attr("scale")
    if scale is None:
        if not isinstance(head_size, int):
            raise UnsupportedCallError("a head size that is symbolic, without a scale")
        scale = 1 / sqrt(head_size)
    if not isinstance(scale, int | float):
        raise UnsupportedCallError("a scale that run time computes")
    # heads and batch may be missing, and several axes may count the batch
    batch = _batch_of(q, k, v)
    q, k, v = (_four_axes(c, item, batch) for item in (q, k, v))
    groups = _kv_groups(q, k, grouped=bool(c.attr("enable_gqa")))
    mask = c.optional("attn_mask")
    if mask is not None:
        mask = _mask(c, mask, batch)
        if mask.dtype is not DType.BOOL:
            mask = c.cast(mask, c.dtype)
    out = c.b.op(
        attention, q, k, v, mask, scale=float(scale), kv_groups=groups,
        causal_offset=0 if c.attr("is_causal") else None,
    )  # fmt: skip
    return reshaped(c, out, c.shape)


def _batch_of(q: Value, k: Value, v: Value) -> tuple[DimLike, ...]:
    """Returns the axes before heads, broadcast between the operands."""
    rank = max(len(shape_of(item)) for item in (q, k, v))
    batch: list[DimLike] = [1] * max(rank - _HEAD_AXES, 0)
    for item in (q, k, v):
        own = shape_of(item)[:-_HEAD_AXES]
        for i, size in enumerate(own, start=len(batch) - len(own)):
            batch[i] = size if batch[i] == 1 else batch[i]
    return tuple(batch)


def _four_axes(c: CallImport, x: Value, batch: tuple[DimLike, ...]) -> Value:
    shape = shape_of(x)
    own = (*(1,) * (_HEAD_AXES - len(shape)), *shape)
    heads = own[-_HEAD_AXES:]
    if len(batch) == 1 and own[:-_HEAD_AXES] == batch:
        return x
    if own[:-_HEAD_AXES] != batch:
        x = expanded(c, reshaped(c, x, own), (*batch, *heads))
    return reshaped(c, x, (product(batch), *heads))


def _mask(c: CallImport, mask: Value, batch: tuple[DimLike, ...]) -> Value:
    """Returns a mask that broadcasts to `[B, H, S, T]`."""
    shape = shape_of(mask)
    if len(batch) < 2:
        return mask  # trailing axes align
    own = shape[:-_HEAD_AXES]
    heads = (*(1,) * (_HEAD_AXES - len(shape)), *shape)[-_HEAD_AXES:]
    if all(size == 1 for size in own):
        return reshaped(c, mask, (1, *heads))
    wide = expanded(c, mask, (*batch, *heads))
    return c.b.op(reshape, wide, shape=(product(batch), *heads))


def _kv_groups(q: Value, k: Value, *, grouped: bool) -> int:
    heads, kv_heads = shape_of(q)[1], shape_of(k)[1]
    if known_equal(heads, kv_heads):
        return 1
    ratio = exact_quotient(heads, kv_heads)
    if not isinstance(ratio, int) or not (grouped or kv_heads == 1):
        raise UnsupportedCallError(f"{heads} query heads share {kv_heads} key heads")
    return ratio


IMPORTS: tuple[Import, ...] = (row(_attention, "aten.scaled_dot_product_attention.default"),)
