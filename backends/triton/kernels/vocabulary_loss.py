"""Cross-entropy of a linear layer as a function that differentiates.

Source: Wijmans et al. 2025, sections 4.2 and 4.3. Where a filter is asked for, tiles whose softmax
is almost zero take no part in the products with the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.backends.triton.kernels.cross_entropy import cross_entropy_forward, logit_gradient
from regraft.backends.triton.kernels.gradient_filter import (
    filtered_logit_gradient,
    filtered_product,
)
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_choice,
    check_counts,
    check_operands,
    in_autocast,
)
from regraft.backends.triton.kernels.reduced_losses import check_reduction, reduced_loss

CHUNK = 2048
"""Words whose gradients are in memory at a time: 1.6% of the logits of 131,072.

Fewer would cost time: the gradient by x, in f32, is read and written once per chunk."""


def _keep_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, labels, softcap, threshold, precision = inputs
    _, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(x, weight, labels, sums)
    ctx.softcap, ctx.threshold, ctx.precision = softcap, threshold, precision


def _differentiate_cross_entropy(ctx: Any, dloss: Tensor, dsums: None) -> tuple[Tensor | None, ...]:
    x, weight, labels, sums = ctx.saved_tensors
    dx = torch.zeros(x.shape, dtype=sums.dtype, device=x.device)
    dweight = torch.empty_like(weight)
    dloss = torch.where(labels >= 0, dloss, 0)
    for first in range(0, weight.shape[0], CHUNK):
        width = min(CHUNK, weight.shape[0] - first)
        words = weight[first : first + width]
        given = (x, weight, labels, sums, dloss, first, width, ctx.softcap)
        if ctx.threshold > 0:
            dlogits, kept = filtered_logit_gradient(*given, ctx.threshold, ctx.precision)
            dx += filtered_product(dlogits, words, kept, False, ctx.precision)
            dweight[first : first + width] = filtered_product(dlogits, x, kept, True, ctx.precision)
        else:
            dlogits = logit_gradient(*given, ctx.precision)
            dx += dlogits @ words
            dweight[first : first + width] = dlogits.T @ x
    return dx.to(x.dtype), dweight, None, None, None, None


cross_entropy_forward.register_autograd(
    _differentiate_cross_entropy, setup_context=_keep_cross_entropy
)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    softcap: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    filter_below: float = 0.0,
    precision: str = "ieee",
) -> Tensor:
    """Returns the cross-entropy of x @ weight.T, in f32: its mean, sum, or one number per row.

    Args:
        x: [..., K].
        weight: [V, K] of the same dtype.
        labels: i64 [...], words of the vocabulary or `ignore_index`.
        softcap: Logits become softcap * tanh(logit / softcap).
        ignore_index: Rows of this label do not count.
        reduction: `mean` over the rows that count, `sum`, or `none`.
        filter_below: Tiles of the logits' gradient whose every element is smaller than this, before
            it is multiplied by the loss's, are left out of it; 0: none are. The paper takes 2^-12,
            below which 16 bits hold nothing of a sum of weights.
        precision: Of products of f32, as `tl.dot` has it.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Sizes differ, or for another reduction.
    """
    check_reduction("linear_cross_entropy", reduction)
    x, weight = in_autocast(x, weight)
    sizes = (*weight.shape[:1], *x.shape[-1:])
    check_operands("linear_cross_entropy", x=(x, None), weight=(weight, sizes))
    check_counts("linear_cross_entropy", "labels", labels, x.shape[:-1], x)
    check_choice("linear_cross_entropy", "precision", precision, PRECISIONS)
    flat = labels.reshape(-1)
    # words that there are not become the one past the end, whose loss is NaN
    known = torch.where(flat < 0, weight.shape[0], flat)
    counted = torch.where(flat == ignore_index, -1, known)
    rows = x.reshape(-1, x.shape[-1])
    loss: Tensor = cross_entropy_forward(rows, weight, counted, softcap, filter_below, precision)[0]
    return reduced_loss(loss, labels, counted, reduction)
