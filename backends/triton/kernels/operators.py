"""Makes an operator of PyTorch of a launch, its reference and what it allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.library import triton_op
from triton.runtime.interpreter import InterpretedFunction


def operator(
    name: str,
    launch: Callable[..., Any],
    *,
    allocate: Callable[..., Any],
    reference: Callable[..., Any],
    kernel: object,
) -> Any:
    """Returns the operator `regraft::name`.

    On a GPU it launches the kernel, visible to `torch.compile`; `torch.export` keeps it as one
    node. On a CPU it computes the reference, or runs the kernel in Triton's interpreter where
    `TRITON_INTERPRET=1` was set before Triton was imported.

    Args:
        name: Name in the namespace `regraft`.
        launch: Allocates the results and launches the kernel; its annotations are the schema.
        allocate: Returns uninitialized results for the same arguments; the fake implementation.
        reference: The same computed with PyTorch's own operators.
        kernel: The kernel, which knows whether it is interpreted.
    """
    defined = triton_op(f"regraft::{name}", launch, mutates_args=())
    interpreted = isinstance(kernel, InterpretedFunction)

    def on_cpu(*args: Any) -> Any:
        if interpreted:
            return launch(*args)
        results = reference(*args)
        # the layout that `allocate` promises; a result that is an operand would be an alias
        operands = {arg.data_ptr() for arg in args if isinstance(arg, Tensor) and arg.numel()}
        if isinstance(results, Tensor):
            return _own(results, operands)
        return tuple(_own(result, operands) for result in results)

    defined.register_kernel("cpu")(on_cpu)
    defined.register_fake(allocate)
    return defined


def _own(result: Tensor, operands: set[int]) -> Tensor:
    result = result.contiguous()
    return result.clone() if result.data_ptr() in operands else result


def rows_of(x: Tensor) -> Tensor:
    """Returns x [..., N] as [R, N] with adjacent elements in a row; a view where there is one."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def block_of(size: int) -> int:
    """Returns the smallest power of two that holds `size`, at least 16."""
    return max(16, 1 << (size - 1).bit_length()) if size > 1 else 16
