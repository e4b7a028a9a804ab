"""What generated kernels share: operands as rows, and gradients by their references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.backends.triton.kernels.operators import rows_of


def rows_together(*tensors: Tensor) -> list[Tensor]:
    """Returns tensors of one shape as [R, N]; one long row where all are contiguous."""
    if all(t.is_contiguous() for t in tensors):
        return [t.reshape(1, -1) for t in tensors]
    return [rows_of(t) for t in tensors]


def size_between(shape: Sequence[int], start: int, stop: int) -> int:
    """Returns the product of the sizes of the axes [start, stop) of a shape."""
    return math.prod(shape[start:stop])


def gradients_by_reference(
    reference: Callable[..., Any], ctx: Any, gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of an operator: its reference is computed again and differentiated.

    Args:
        reference: The reference.
        ctx: Has the operands saved.
        gradients: Of its results.
    """
    wanted = ctx.needs_input_grad
    with torch.enable_grad():
        operands = [
            x.detach().requires_grad_(is_wanted)
            for x, is_wanted in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        results = reference(*operands)
        results = [results] if isinstance(results, Tensor) else list(results)
    pairs = [
        (result, gradient)
        for result, gradient in zip(results, gradients, strict=True)
        if gradient is not None and result.requires_grad
    ]
    sources = [x for x in operands if x.requires_grad]
    if not pairs or not sources:
        return (None,) * len(operands)
    found = torch.autograd.grad(
        [result for result, _ in pairs], sources, [gradient for _, gradient in pairs],
        allow_unused=True,
    )  # fmt: skip
    by_source = iter(found)
    return tuple(next(by_source) if x.requires_grad else None for x in operands)


def keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Saves the operands for `gradients_by_reference`."""
    ctx.save_for_backward(*inputs)
