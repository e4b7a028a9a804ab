"""What generated kernels share: operands as rows, gradients by kernels and by references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

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


def keep_operands_and_shapes(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Saves the operands for `gradients_by_kernel`, and what the results are."""
    ctx.save_for_backward(*inputs)
    results = (output,) if isinstance(output, Tensor) else output
    ctx.results = [(x.shape, x.dtype) for x in results]


def gradients_by_kernel(
    gradient: Callable[..., Any],
    kernel: object,
    reference: Callable[..., Any],
    ctx: Any,
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of an operator, which a kernel computes from its operands.

    Args:
        gradient: Its operator: operands, gradients of float results, which gradients are needed.
        kernel: Its kernel, which knows whether it is interpreted.
        reference: What is differentiated on a CPU otherwise.
        ctx: Has operands and shapes saved.
        gradients: Of the results.
    """
    operands = ctx.saved_tensors
    device = operands[0].device
    # PyTorch's compiler hands in stand-ins, for which nothing is interpreted
    is_real = type(operands[0]) in (Tensor, torch.nn.Parameter)
    if device.type == "cpu" and not (is_real and isinstance(kernel, InterpretedFunction)):
        return gradients_by_reference(reference, ctx, gradients)
    handed = [
        torch.zeros(shape, dtype=dtype, device=device) if given is None else given
        for given, (shape, dtype) in zip(gradients, ctx.results, strict=True)
        if dtype.is_floating_point
    ]
    is_float = [x.is_floating_point() for x in operands]
    needs = [n for n, is_one in zip(ctx.needs_input_grad, is_float, strict=True) if is_one]
    found = gradient(*operands, *handed, *needs)
    by_float = iter([found] if isinstance(found, Tensor) else found)
    given = [next(by_float) if is_one else None for is_one in is_float]
    return tuple(
        x if is_wanted else None for x, is_wanted in zip(given, ctx.needs_input_grad, strict=True)
    )


def gradients_of(
    reference: Callable[..., Any],
    operands: Sequence[Tensor],
    handed: Sequence[Tensor],
    needs: Sequence[bool],
) -> Any:
    """Returns the gradients of a reference for its float operands; empty where none is needed.

    Args:
        reference: The reference.
        operands: Its operands.
        handed: Gradients of its float results.
        needs: Which are needed, of the float operands.
    """
    floats = [x for x in operands if x.is_floating_point()]

    def of_floats(*given: Tensor) -> tuple[Tensor, ...]:
        by_float = iter(given)
        results = reference(*(next(by_float) if x.is_floating_point() else x for x in operands))
        results = (results,) if isinstance(results, Tensor) else results
        return tuple(x for x in results if x.is_floating_point())

    found = torch.func.vjp(of_floats, *floats)[1](tuple(handed))
    kept = [x if is_one else x.new_empty(0) for x, is_one in zip(found, needs, strict=True)]
    return kept[0] if len(kept) == 1 else tuple(kept)


def summed(parts: Tensor, lead: Sequence[int], out: Tensor) -> Tensor:
    """Returns the gradient of an operand that many rows share, from parts in f32.

    Args:
        parts: [R, N] or [R, 1].
        lead: Sizes of the leading axes, whose product is R; () where the operand has none of them.
        out: Tells shape and dtype; empty where the gradient is not needed.
    """
    if out.numel() == 0:
        return out
    if not lead:
        return parts.sum(0).reshape(out.shape).to(out.dtype)
    whole = parts.reshape(*lead, parts.shape[1])
    return whole.sum_to_size(out.shape).to(out.dtype)
