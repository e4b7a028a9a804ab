"""What generated kernels share: operands as rows, gradients by kernels and by references."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def layout_of(x: Tensor) -> torch.memory_format:
    """Returns how results lie in memory that are made of x [B, C, ...]: channels last, as x does.

    On a CPU, where references run, they are contiguous.
    """
    last = _LAST.get(x.dim(), torch.contiguous_format)
    if x.device.type == "cpu" or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def in_layout_of(out: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Returns tensors of the shape of a dense result as one long row each, in its order.

    Strided ones are copied: a kernel finds the channel of an element by its place in the long row.
    """
    if out.is_contiguous():
        return [x.contiguous().reshape(1, -1) for x in tensors]
    return [x.movedim(1, -1).contiguous().reshape(1, -1) for x in tensors]


def promoted(*operands: Tensor | torch.dtype) -> torch.dtype:
    """Returns the dtype of what tensors give together; in `torch.autocast` theirs may differ.

    As PyTorch does, it asks tensors without axes only where there are no others.
    """
    wide = [x for x in operands if not isinstance(x, Tensor) or x.dim() > 0]
    dtypes = [x.dtype if isinstance(x, Tensor) else x for x in wide or operands]
    return functools.reduce(torch.promote_types, dtypes)


def elements_below(out: Tensor, axis: int) -> int:
    """Returns how many elements of a dense result lie in memory per position of an axis."""
    return out.stride(axis) if out.shape[axis] > 1 else 1


def size_between(shape: Sequence[int], start: int, stop: int) -> int:
    """Returns the product of the sizes of the axes [start, stop) of a shape."""
    return math.prod(shape[start:stop])


def gradients_by_reference(
    reference: Callable[..., Any],
    operands: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of an operator: its reference is computed again and differentiated.

    Args:
        reference: The reference.
        operands: Its operands.
        gradients: Of its results.
        wanted: Which gradients are, by operand.
    """
    with torch.enable_grad():
        operands = [
            x.detach().requires_grad_(is_wanted)
            for x, is_wanted in zip(operands, wanted, strict=True)
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


def keep_operands_and_shapes(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Saves the operands for `gradients_by_kernel`, and what the results are."""
    ctx.save_for_backward(*inputs)
    results = (output,) if isinstance(output, Tensor) else output
    ctx.results = [(x.shape, x.dtype) for x in results]


@dataclass(frozen=True)
class ChainGradient:
    """How a chain is differentiated.

    Attributes:
        reference: The chain as PyTorch computes it, which is differentiated on a CPU.
        operator: Computes gradients of operands, gradients of float results, and which of its
            own results are needed; None where all gradients are handed through.
        kernel: Its kernel, which knows whether it is interpreted.
        sources: Per float operand the place of its gradient among those of the float results and,
            after them, the results of `operator`; -1 where it is zero. None where there is no
            kernel since an operator has no rule.
    """

    reference: Callable[..., Any]
    operator: Callable[..., Any] | None
    kernel: object
    sources: tuple[int, ...] | None


def gradients_by_kernel(
    chain: ChainGradient, ctx: Any, gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of an operator, which a kernel computes from its operands.

    Args:
        chain: The chain that the operator computes.
        ctx: Has operands and shapes saved.
        gradients: Of the results.
    """
    return gradients_of_chain(
        chain, ctx.saved_tensors, gradients, ctx.results, ctx.needs_input_grad
    )


def gradients_of_chain(
    chain: ChainGradient,
    operands: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    results: Sequence[tuple[torch.Size, torch.dtype]],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of a chain, None where none is wanted.

    Args:
        chain: The chain.
        operands: Its operands.
        gradients: Of its results.
        results: Shapes and dtypes of its results.
        wanted: Which gradients are, by operand.
    """
    device = operands[0].device
    # PyTorch's compiler hands in stand-ins, for which nothing is interpreted
    is_real = type(operands[0]) in (Tensor, torch.nn.Parameter)
    is_interpreted = isinstance(chain.kernel, InterpretedFunction)
    is_elsewhere = device.type == "cpu" and not (is_real and is_interpreted)
    if chain.sources is None or is_elsewhere:
        return gradients_by_reference(chain.reference, operands, gradients, wanted)
    handed = [
        torch.zeros(shape, dtype=dtype, device=device) if given is None else given
        for given, (shape, dtype) in zip(gradients, results, strict=True)
        if dtype.is_floating_point
    ]
    by_float = iter(chain.sources)
    sources = [next(by_float) if x.is_floating_point() else None for x in operands]
    wanted = [is_one and of is not None for is_one, of in zip(wanted, sources, strict=True)]
    made: list[Tensor] = list(handed)
    needs = [False] * (max(chain.sources) + 1 - len(handed))
    for is_one, of in zip(wanted, sources, strict=True):
        if is_one and of is not None and of >= len(handed):
            needs[of - len(handed)] = True
    if chain.operator is not None and any(needs):
        own = chain.operator(*operands, *handed, *needs)
        made += [own] if isinstance(own, Tensor) else own
    return tuple(
        None if not is_one or of is None else torch.zeros_like(x) if of < 0 else made[of]
        for x, is_one, of in zip(operands, wanted, sources, strict=True)
    )


def gradients_of(
    reference: Callable[..., Any],
    operands: Sequence[Tensor],
    handed: Sequence[Tensor],
    needs: Sequence[bool | None],
) -> Any:
    """Returns the gradients of a reference for its float operands; empty where none is needed.

    Args:
        reference: The reference.
        operands: Its operands.
        handed: Gradients of its float results.
        needs: Which are needed, of the float operands; None for one that is not returned.
    """
    floats = [x for x in operands if x.is_floating_point()]

    def of_floats(*given: Tensor) -> tuple[Tensor, ...]:
        by_float = iter(given)
        results = reference(*(next(by_float) if x.is_floating_point() else x for x in operands))
        results = (results,) if isinstance(results, Tensor) else results
        return tuple(x for x in results if x.is_floating_point())

    found = torch.func.vjp(of_floats, *floats)[1](tuple(handed))
    kept = [
        x if is_one else x.new_empty(0)
        for x, is_one in zip(found, needs, strict=True)
        if is_one is not None
    ]
    return kept[0] if len(kept) == 1 else tuple(kept)


def summed(parts: Tensor, shape: Sequence[int], out: Tensor) -> Tensor:
    """Returns the gradient of an operand that many rows share, from parts in f32.

    Args:
        parts: [R, N] or [R, 1].
        shape: What these are; () where the operand has none of the leading axes.
        out: Tells shape and dtype; empty where the gradient is not needed.
    """
    if out.numel() == 0:
        return out
    if not shape:
        return parts.sum(0).reshape(out.shape).to(out.dtype)
    return parts.reshape(*shape).sum_to_size(out.shape).to(out.dtype)
