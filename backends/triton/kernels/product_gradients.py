"""Gradients of a product with what stands before and after it, for generated kernels.

What stands before and after has kernels of its own for its gradient; those of the product itself
are two products, which the vendor's library runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.backends.triton.kernels.generated import ChainGradient, gradients_of_chain


def product_gradients(
    ctx: Any,
    gradients: Sequence[Tensor | None],
    before: Callable[..., Tensor] | None,
    of_before: ChainGradient | None,
    of_after: ChainGradient | None,
    num_before: int,
    *,
    has_bias: bool,
    is_read: bool,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of `after(F.linear(before(...), weight, bias), ...)`.

    Args:
        ctx: Has the operands saved: those of `before`, the weight, the bias, those of `after`; and
            what the results are.
        gradients: Of the results.
        before: What the rows of the product are made by; None where they are an operand.
        of_before: How that is differentiated.
        of_after: How what is made of the product is differentiated; None where it is the result.
        num_before: Operands of `before`, 1 without it.
        has_bias: Whether there is a bias.
        is_read: Whether the gradient of what follows depends on the product, which is then
            computed again.
    """
    wanted, operands = ctx.needs_input_grad, ctx.saved_tensors
    first = num_before + 1 + has_bias
    weight = operands[num_before]
    is_passed = any(wanted[:first])
    x: Tensor | None = None
    if wanted[num_before] or (is_read and of_after is not None):
        x = operands[0] if before is None else before(*operands[:num_before])
    found: list[Tensor | None] = [None] * len(operands)
    dproduct = gradients[0]
    if of_after is not None:
        shape, _ = ctx.results[0]
        if is_read and x is not None:
            bias = operands[num_before + 1] if has_bias else None
            product = torch.nn.functional.linear(x, weight, bias).reshape(shape)
        else:
            product = weight.new_zeros(()).expand(shape)
        dproduct, *found[first:] = gradients_of_chain(
            of_after,
            [product, *operands[first:]],
            gradients,
            ctx.results,
            [is_passed, *wanted[first:]],
        )
    if dproduct is None or not is_passed:
        return tuple(found)
    rows = dproduct.reshape(-1, dproduct.shape[-1])
    if x is not None and wanted[num_before]:
        found[num_before] = rows.T @ x.reshape(-1, x.shape[-1])
    if has_bias and wanted[num_before + 1]:
        found[num_before + 1] = rows.sum(0)
    if any(wanted[:num_before]):
        made = torch.broadcast_shapes(*(operand.shape for operand in operands[:num_before]))
        dx = (rows @ weight).reshape(made)
        found[:num_before] = (
            [dx]
            if of_before is None
            else gradients_of_chain(
                of_before,
                operands[:num_before],
                [dx],
                [(dx.shape, dx.dtype)],
                wanted[:num_before],
            )
        )
    return tuple(found)
