"""Softmax of rows in two forms, and its gradient.

The usual form subtracts the row's maximum; a row too long for registers is read twice, the
maximum and the sum being kept together (Milakov and Gimelshein 2018). The two-pass form needs no
maximum: e^x is kept as m * 2^n with n = round(x / ln 2), so that no sum overflows and shares of a
row merge by shifting exponents, without e^x (Dukhan and Ablavatski 2020, algorithm 3). Its
reduction of x is exact for |x| < 11356; beyond, the error grows as |x| * 2^-24.

A row of -inf alone gives NaN, as `torch.softmax` does; masks that may leave a row empty belong
to attention.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operands import check_operands
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton


@triton.jit
def softmax_kernel(
    x_ptr,
    y_ptr,
    x_stride,
    num_rows,
    N,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """Softmax of ROWS rows of N elements, in registers when SINGLE."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_mask = row < num_rows
    columns = tl.arange(0, BLOCK)[None, :]
    if SINGLE:
        mask = row_mask & (columns < N)
        x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=float("-inf"))
        x = x.to(tl.float32)
        e = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
        y = e / tl.sum(e, axis=1, keep_dims=True)
        tl.store(y_ptr + row * N + columns, y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        largest = tl.full([ROWS, 1], float("-inf"), tl.float32)
        total = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, N, BLOCK):
            column = start + columns
            mask = row_mask & (column < N)
            x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=float("-inf"))
            x = x.to(tl.float32)
            found = tl.maximum(largest, tl.max(x, axis=1, keep_dims=True))
            # -inf so far: subtracting it from -inf would give NaN where zero is meant
            base = tl.where(found == float("-inf"), 0.0, found)
            total = total * tl.exp(largest - base)
            total += tl.sum(tl.exp(x - base), axis=1, keep_dims=True)
            largest = found
        for start in range(0, N, BLOCK):
            column = start + columns
            mask = row_mask & (column < N)
            x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=float("-inf"))
            y = tl.exp(x.to(tl.float32) - largest) / total
            tl.store(y_ptr + row * N + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def extended_exp(x):
    """Returns m in [sqrt(1/2), sqrt(2)] and a whole n with e^x = m * 2^n; m = 0 for -inf."""
    # 2^30 is past every exponent of an f32, so that the shift of -inf is a finite number; NaN stays
    bounded = tl.where(x < -7.4e8, -7.4e8, x)
    n = tl.floor(bounded * 1.4426950408889634 + 0.5)
    # ln 2 in two parts: n * 0.693359375 is exact for |n| < 2^14
    m = tl.exp(bounded - n * 0.693359375 - n * -2.1219444005469057e-4)
    return tl.where(x == float("-inf"), 0.0, m), n


@triton.jit
def two_pass_softmax_kernel(
    x_ptr,
    y_ptr,
    x_stride,
    num_rows,
    N,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Softmax of ROWS rows of N elements as sums of m * 2^n: a pass to add, a pass to write."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_mask = row < num_rows
    columns = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, 1], tl.float32)
    exponent = tl.full([ROWS, 1], -1.0e9, tl.float32)
    for start in range(0, N, BLOCK):
        column = start + columns
        mask = row_mask & (column < N)
        x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=float("-inf"))
        m, n = extended_exp(x.to(tl.float32))
        found = tl.maximum(exponent, tl.max(n, axis=1, keep_dims=True))
        total = total * tl.exp2(exponent - found)
        total += tl.sum(m * tl.exp2(n - found), axis=1, keep_dims=True)
        exponent = found
    for start in range(0, N, BLOCK):
        column = start + columns
        mask = row_mask & (column < N)
        x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=float("-inf"))
        m, n = extended_exp(x.to(tl.float32))
        y = m / total * tl.exp2(n - exponent)
        tl.store(y_ptr + row * N + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    dy_stride,
    y_stride,
    num_rows,
    N,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """Writes dx = y * (dy - sum(dy * y)) of ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_mask = row < num_rows
    columns = tl.arange(0, BLOCK)[None, :]
    if SINGLE:
        mask = row_mask & (columns < N)
        dy = tl.load(dy_ptr + row * dy_stride + columns, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + row * y_stride + columns, mask=mask, other=0.0).to(tl.float32)
        dx = y * (dy - tl.sum(dy * y, axis=1, keep_dims=True))
        tl.store(dx_ptr + row * N + columns, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    else:
        dot = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, N, BLOCK):
            column = start + columns
            mask = row_mask & (column < N)
            dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + row * y_stride + column, mask=mask, other=0.0).to(tl.float32)
            dot += tl.sum(dy * y, axis=1, keep_dims=True)
        for start in range(0, N, BLOCK):
            column = start + columns
            mask = row_mask & (column < N)
            dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + row * y_stride + column, mask=mask, other=0.0).to(tl.float32)
            dx = y * (dy - dot)
            tl.store(dx_ptr + row * N + column, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def reference_softmax(x: Tensor, two_pass: bool) -> Tensor:
    """Returns the softmax over the last axis; both forms are the same function."""
    return torch.softmax(x, -1)


def reference_softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    """Returns the gradient by x, computed in f32 (or f64)."""
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    p, g = y.to(wide), dy.to(wide)
    return (p * (g - (g * p).sum(-1, keepdim=True))).to(y.dtype)


def _allocate_softmax(x: Tensor, two_pass: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _launch_softmax(x: Tensor, two_pass: bool) -> Tensor:
    y = _allocate_softmax(x, two_pass)
    rows = rows_of(x)
    num_rows, N = rows.shape
    if rows.numel() == 0:
        return y
    config = config_for("softmax", x, N)
    block = min(block_of(N), config["max_block"])
    grid = (triton.cdiv(num_rows, config["rows"]),)
    if two_pass:
        wrap_triton(two_pass_softmax_kernel)[grid](
            rows,
            y,
            rows.stride(0),
            num_rows,
            N,
            ROWS=config["rows"],
            BLOCK=block,
            num_warps=config["warps"],
        )
        return y
    wrap_triton(softmax_kernel)[grid](
        rows,
        y,
        rows.stride(0),
        num_rows,
        N,
        ROWS=config["rows"],
        BLOCK=block,
        SINGLE=block >= N,
        num_warps=config["warps"],
    )
    return y


def _allocate_softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    return torch.empty(y.shape, dtype=y.dtype, device=y.device)


def _launch_softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    dx = _allocate_softmax_backward(dy, y)
    grad, kept = rows_of(dy), rows_of(y)
    num_rows, N = kept.shape
    if kept.numel() == 0:
        return dx
    config = config_for("softmax", y, N)
    block = min(block_of(N), config["max_block"])
    wrap_triton(softmax_backward_kernel)[(triton.cdiv(num_rows, config["rows"]),)](
        grad,
        kept,
        dx,
        grad.stride(0),
        kept.stride(0),
        num_rows,
        N,
        ROWS=config["rows"],
        BLOCK=block,
        SINGLE=block >= N,
        num_warps=config["warps"],
    )
    return dx


softmax_forward = operator(
    "softmax",
    _launch_softmax,
    allocate=_allocate_softmax,
    reference=reference_softmax,
    kernel=softmax_kernel,
)
softmax_backward = operator(
    "softmax_backward",
    _launch_softmax_backward,
    allocate=_allocate_softmax_backward,
    reference=reference_softmax_backward,
    kernel=softmax_backward_kernel,
)


def _keep_softmax(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _differentiate_softmax(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    (y,) = ctx.saved_tensors
    return softmax_backward(dy, y), None


softmax_forward.register_autograd(_differentiate_softmax, setup_context=_keep_softmax)


def softmax(x: Tensor, two_pass: bool = False) -> Tensor:
    """Returns the softmax of x [..., N] over its last axis, in the dtype of x.

    Args:
        x: Any strides; computed in f32.
        two_pass: Without the row's maximum: sums of m * 2^n.
    """
    check_operands("softmax", x=(x, None))
    y: Tensor = softmax_forward(x, two_pass)
    return y
