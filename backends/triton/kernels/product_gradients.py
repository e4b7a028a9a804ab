"""Gradients of a product with what stands before and after it, for generated kernels.

What stands before and after is differentiated by PyTorch; the gradients of the product itself are
two products, which the vendor's library runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def product_gradients(
    ctx: Any,
    gradients: Sequence[Tensor | None],
    before: Callable[..., Tensor] | None,
    after: Callable[..., Any] | None,
    num_before: int,
    *,
    has_bias: bool,
    is_read: bool,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of `after(F.linear(before(...), weight, bias), ...)`.

    Args:
        ctx: Has the operands saved: those of `before`, the weight, the bias, those of `after`.
        gradients: Of the results.
        before: What the rows of the product are made by; None where they are an operand.
        after: What is made of the product; None where it is the result.
        num_before: Operands of `before`, 1 without it.
        has_bias: Whether there is a bias.
        is_read: Whether the gradient of `after` depends on the product, which is then computed
            again.
    """
    wanted = ctx.needs_input_grad
    first = num_before + 1 + has_bias
    with torch.enable_grad():
        operands = [
            x.detach().requires_grad_(is_wanted)
            for x, is_wanted in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        made = operands[0] if before is None else before(*operands[:num_before])
        x, weight = made.detach(), operands[num_before].detach()
        bias = operands[num_before + 1].detach() if has_bias else None
        if is_read:
            product = torch.nn.functional.linear(x, weight, bias)
        else:
            product = x.new_zeros(()).expand(*x.shape[:-1], weight.shape[0])
        product = product.detach().requires_grad_(any(wanted[:first]))
        results = product if after is None else after(product, *operands[first:])
        results = [results] if isinstance(results, Tensor) else list(results)
    pairs = [
        (result, gradient)
        for result, gradient in zip(results, gradients, strict=True)
        if gradient is not None and result.requires_grad
    ]
    found: list[Tensor | None] = [None] * len(operands)
    sources = [idx for idx in range(first, len(operands)) if wanted[idx]]
    leaves = [product] if product.requires_grad else []
    leaves += [operands[idx] for idx in sources]
    if not pairs or not leaves:
        return tuple(found)
    parts = list(
        torch.autograd.grad(
            [result for result, _ in pairs],
            leaves,
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
    )
    dproduct = parts.pop(0) if product.requires_grad else None
    for idx, part in zip(sources, parts, strict=True):
        found[idx] = part
    if dproduct is None:
        return tuple(found)
    rows = dproduct.reshape(-1, dproduct.shape[-1])
    if wanted[num_before]:
        found[num_before] = rows.T @ x.reshape(-1, x.shape[-1])
    if has_bias and wanted[num_before + 1]:
        found[num_before + 1] = rows.sum(0)
    leaves = [x for x in operands[:num_before] if x.requires_grad]
    if leaves:
        dx = dproduct @ weight
        known = (dx,) if before is None else torch.autograd.grad(made, leaves, dx)
        by_operand = iter(known)
        for idx in range(num_before):
            found[idx] = next(by_operand) if operands[idx].requires_grad else None
    return tuple(found)
