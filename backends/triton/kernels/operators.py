"""Makes an operator of PyTorch of a launch, its reference and what it allocates."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import global_decomposition_table
from torch.library import triton_op
from triton.runtime.interpreter import InterpretedFunction

NAMESPACE = "regraft"
"""Of the operators; that of a package is its own."""


def operator(
    name: str,
    launch: Callable[..., Any],
    *,
    allocate: Callable[..., Any],
    reference: Callable[..., Any],
    kernel: object,
    mutates: tuple[str, ...] = (),
    plain_in_autocast: bool = False,
) -> Any:
    """Returns the operator `name` in the namespace.

    On a GPU it launches the kernel, visible to `torch.compile`; `torch.export` keeps it as one
    node, and exports to ONNX trace its reference. On a CPU it computes the reference, or runs the
    kernel in Triton's interpreter where `TRITON_INTERPRET=1` was set before Triton was imported.

    Args:
        name: Name in the namespace.
        launch: Allocates the results and launches the kernel; its annotations are the schema.
        allocate: Returns uninitialized results for the same arguments; the fake implementation.
        reference: The same computed with PyTorch's own operators.
        kernel: The kernel, which knows whether it is interpreted.
        mutates: Arguments that it writes to; there is then no export to ONNX.
        plain_in_autocast: Whether the reference takes its place within `torch.autocast`, where its
            operands are of several dtypes, and PyTorch says which one each step has.
    """
    interpreted = isinstance(kernel, InterpretedFunction)

    @functools.wraps(launch)
    def traced(*args: Any) -> Any:
        # PyTorch's compiler traces the body: on a CPU there is nothing to launch
        if _is_on_cpu(args):
            return on_cpu(*args)
        with _on_their_device(args):
            return launch(*args)

    def on_cpu(*args: Any) -> Any:
        # the layout that `allocate` promises
        results = reference(*args)
        if results is None or isinstance(results, Tensor):
            return None if results is None else results.contiguous()
        return tuple(result.contiguous() for result in results)

    defined = triton_op(f"{NAMESPACE}::{name}", traced, mutates_args=mutates)
    defined.register_kernel("cpu")(launch if interpreted else on_cpu)
    defined.register_fake(allocate)
    if not mutates:
        defined.register_autograd(_no_gradient_of(name))  # until it gets one
    for key in ("AutocastCPU", "AutocastCUDA") if plain_in_autocast else ():
        # in the library of the operator, so that one that is defined again takes its place
        torch.library.impl(f"{NAMESPACE}::{name}", key, lib=defined._lib)(reference)
    # what exporters to ONNX trace; with the entry `meta`, shapes are still those of `allocate`
    for kind, function in (("meta", allocate), ("post_autograd", on_cpu)):
        if not mutates:
            global_decomposition_table[kind][defined._opoverload] = function
    # compilation ahead of time notes the launches of a call on a CPU
    defined.launch, defined.on_cpu = launch, on_cpu
    return defined


def wrap_triton(kernel: Any) -> Any:
    """Returns a kernel whose launches PyTorch's compiler sees; an interpreted one as it is.

    `torch.library.wrap_triton` refuses interpreted ones before PyTorch 2.13.
    """
    if isinstance(kernel, InterpretedFunction):
        return kernel
    return torch.library.wrap_triton(kernel)


def _no_gradient_of(name: str) -> Callable[..., Any]:
    """Returns what says so: a second derivative asks for the gradient of a gradient's operator."""

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"{name}: the operator has no gradient, so what ends in it cannot be differentiated "
            "again\nhint: PyTorch's own operators have second derivatives"
        )

    return refuse


def _is_on_cpu(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, Tensor) and arg.device.type == "cpu" for arg in args)


def _on_their_device(args: tuple[Any, ...]) -> contextlib.AbstractContextManager[Any]:
    """Returns what makes the operands' GPU the current one: Triton launches on that."""
    if torch.cuda.device_count() < 2:
        return contextlib.nullcontext()
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    current: contextlib.AbstractContextManager[Any] = torch.cuda.device(device)
    return current


def rows_of(x: Tensor) -> Tensor:
    """Returns x [..., N] as [R, N] with adjacent elements in a row; a view where there is one."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def block_of(size: int) -> int:
    """Returns the smallest power of two that holds `size`, at least 16."""
    return max(16, 1 << (size - 1).bit_length()) if size > 1 else 16
