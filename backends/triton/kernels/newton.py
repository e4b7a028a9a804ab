"""Inverses of small matrices by Newton's iteration: all steps of a matrix in one program.

X <- 2 X - X A X, products alone, quadratic once |I - A X| < 1. A matrix and its iterate stay on
the chip; a loop in PyTorch launches four kernels a step. Sums, and the iterate, are f32 in any
dtype. The gradient takes the steps again, keeps every iterate, and goes back through them:
dX = 2 G - G (A X)^T - (X A)^T G, dA = -sum X^T G X^T.
Source: Schulz 1933; Lu et al. 2021 (SOFT, eq. 12); Xiong et al. 2021 (Nystromformer: the start).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton

LARGEST_INVERSE = 64
"""Rows of a matrix that a program holds; PyTorch's products iterate for larger ones."""
_LARGEST_EXACT_GRADIENT = 32
"""Rows of what is not bf16: five products of larger ones, f32 in full or split, do not fit."""


@triton.jit
def newton_kernel(
    a_ptr, start_ptr, out_ptr, a_stride, start_stride, N, steps,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes a matrix's last iterate, or when KEEP those before each step."""
    plane = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_M)[None, :]
    place = row * N + column
    mask = (row < N) & (column < N)
    a = tl.load(a_ptr + plane * a_stride + place, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(start_ptr + plane * start_stride + place, mask=mask, other=0.0).to(tl.float32)
    for step in range(0, steps):
        if KEEP:
            tl.store(out_ptr + (plane * steps + step) * N * N + place, x, mask=mask)
        through = tl.dot(x, a, input_precision=PRECISION)
        x = 2.0 * x - tl.dot(through, x, input_precision=PRECISION)
    if not KEEP:
        tl.store(out_ptr + plane * N * N + place, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def newton_gradient_kernel(
    dout_ptr, a_ptr, kept_ptr, da_ptr, dstart_ptr, a_stride, N, steps,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes the gradients by a matrix and by the first iterate, from the last step on."""
    plane = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_M)[None, :]
    place = row * N + column
    mask = (row < N) & (column < N)
    turned_a = tl.load(a_ptr + plane * a_stride + column * N + row, mask=mask, other=0.0)
    turned_a = turned_a.to(tl.float32)
    g = tl.load(dout_ptr + plane * N * N + place, mask=mask, other=0.0).to(tl.float32)
    da = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for step in range(0, steps):
        number = plane * steps + steps - 1 - step
        # read turned: transposed accumulators gave wrong products on sm_90 (fla #826)
        turned = tl.load(kept_ptr + number * N * N + column * N + row, mask=mask, other=0.0)
        # X^T G, then (A X)^T = X^T A^T and (X A)^T = A^T X^T
        left = tl.dot(turned, g, input_precision=PRECISION)
        da -= tl.dot(left, turned, input_precision=PRECISION)
        right = tl.dot(turned, turned_a, input_precision=PRECISION)
        g = 2.0 * g - tl.dot(g, right, input_precision=PRECISION)
        g -= tl.dot(turned_a, left, input_precision=PRECISION)
    da_out = da_ptr + plane * N * N + place
    tl.store(da_out, da.to(da_ptr.dtype.element_ty), mask=mask)
    g_out = dstart_ptr + plane * N * N + place
    tl.store(g_out, g.to(dstart_ptr.dtype.element_ty), mask=mask)


def newton_steps(a: Tensor, start: Tensor, steps: int) -> list[Tensor]:
    """Returns the iterates before each step and the last, in PyTorch's operators."""
    found = [start]
    for _ in range(steps):
        x = found[-1]
        found.append(2 * x - x @ a @ x)
    return found


def reference_newton(a: Tensor, start: Tensor, steps: int, precision: str) -> Tensor:
    """Returns the last iterate, as kernels have it: of f32 (or f64), in the dtype of a."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    return newton_steps(a.to(wide), start.to(wide), steps)[-1].to(a.dtype)


def _allocate_newton(a: Tensor, start: Tensor, steps: int, precision: str) -> Tensor:
    return torch.empty(a.shape, dtype=a.dtype, device=a.device)


def _products(a: Tensor, precision: str) -> str:
    """Returns the precision of products, all of them in f32: tf32 has the digits of bf16.

    Those of f16, too, but errors of the steps add up beyond its last one.
    """
    return "tf32" if a.dtype == torch.bfloat16 else precision


def _launch_iterates(
    a: Tensor, start: Tensor, out: Tensor, steps: int, precision: str, *, keep: bool
) -> None:
    B, N, _ = a.shape
    config = config_for("newton", a, N)
    wrap_triton(newton_kernel)[(B,)](
        a, start, out, a.stride(0), start.stride(0), N, steps,
        KEEP=keep,
        PRECISION=_products(a, precision),
        BLOCK_M=block_of(N),
        num_warps=config["warps"],
        num_stages=1,
    )  # fmt: skip


def _launch_newton(a: Tensor, start: Tensor, steps: int, precision: str) -> Tensor:
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    if out.numel() > 0:
        _launch_iterates(a.contiguous(), start.contiguous(), out, steps, precision, keep=False)
    return out


newton = operator(
    "newton_inverse",
    _launch_newton,
    allocate=_allocate_newton,
    reference=reference_newton,
    kernel=newton_kernel,
)


def reference_newton_gradient(
    dout: Tensor, a: Tensor, start: Tensor, steps: int, precision: str
) -> tuple[Tensor, Tensor]:
    """Returns the gradients by a and by the first iterate."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    iterates = newton_steps(a.to(wide), start.to(wide), steps)[:-1]
    return gradient_through(dout, a, iterates)


def gradient_through(
    dout: Tensor, a: Tensor, iterates: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the gradients by a and by the first iterate, given those before each step."""
    g, turned_a = (x.to(iterates[0].dtype) if iterates else x for x in (dout, a.mT))
    da = torch.zeros_like(g)
    for x in reversed(iterates):
        left = x.mT @ g
        da = da - left @ x.mT
        g = 2 * g - g @ (x.mT @ turned_a) - turned_a @ left
    return da.to(a.dtype), g.to(a.dtype)


def _allocate_newton_gradient(
    dout: Tensor, a: Tensor, start: Tensor, steps: int, precision: str
) -> tuple[Tensor, Tensor]:
    da = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    return da, torch.empty(start.shape, dtype=start.dtype, device=start.device)


def _launch_newton_gradient(
    dout: Tensor, a: Tensor, start: Tensor, steps: int, precision: str
) -> tuple[Tensor, Tensor]:
    da, dstart = _allocate_newton_gradient(dout, a, start, steps, precision)
    if da.numel() == 0:
        return da, dstart
    dout, a, start = dout.contiguous(), a.contiguous(), start.contiguous()
    B, N, _ = a.shape
    kept = torch.empty((B, steps, N, N), dtype=torch.float32, device=a.device)
    _launch_iterates(a, start, kept, steps, precision, keep=True)
    products = _products(a, precision)
    if a.dtype != torch.bfloat16 and N > _LARGEST_EXACT_GRADIENT:
        return gradient_through(dout, a, kept.unbind(1))
    config = config_for("newton", a, N)
    wrap_triton(newton_gradient_kernel)[(B,)](
        dout, a, kept, da, dstart, a.stride(0), N, steps,
        PRECISION=products,
        BLOCK_M=block_of(N),
        num_warps=config["gradient_warps"],
        num_stages=1,
    )  # fmt: skip
    return da, dstart


newton_gradient = operator(
    "newton_inverse_gradient",
    _launch_newton_gradient,
    allocate=_allocate_newton_gradient,
    reference=reference_newton_gradient,
    kernel=newton_gradient_kernel,
)


def _keep_newton(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, start, steps, precision = inputs
    ctx.save_for_backward(a, start)
    ctx.settings = (steps, precision)


def _differentiate_newton(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    a, start = ctx.saved_tensors
    return *newton_gradient(dout, a, start, *ctx.settings), None, None


newton.register_autograd(_differentiate_newton, setup_context=_keep_newton)


def newton_inverse(
    a: Tensor, start: Tensor | None = None, *, steps: int = 20, precision: str = "ieee"
) -> Tensor:
    """Returns what Newton's iteration makes of the inverse of a [..., N, N], in its dtype.

    Args:
        a: Matrices.
        start: The first iterate, of the shape and dtype of a; default: a^T / (|a|_1 |a|_inf),
            from which it converges for any a that has an inverse.
        steps: Of the iteration; each doubles the digits once it is near.
        precision: Of products of f32, as `tl.dot` has it: `ieee`, `tf32`, `tf32x3`.

    Raises:
        ValueError: The matrices are not square, or `start` has another shape.
    """
    if start is None:
        sizes = a.abs()
        start = a.mT / (sizes.sum(-1).amax(-1) * sizes.sum(-2).amax(-1))[..., None, None]
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape != start.shape:
        raise ValueError(
            f"newton_inverse: a {list(a.shape)}, start {list(start.shape)}; expected [..., N, N] "
            "for both"
        )
    N = a.shape[-1]
    if N > LARGEST_INVERSE:
        return newton_steps(a, start, steps)[-1]
    planes = math.prod(a.shape[:-2])
    found: Tensor = newton(
        a.reshape(planes, N, N), start.to(a.dtype).reshape(planes, N, N), steps, precision
    )
    return found.reshape(a.shape)
