"""Layer norm and RMS norm of rows, with a residual added before, forward and backward.

y = (t - mean(t)) * rstd * weight + bias with t = x + residual; RMS norm leaves out the mean.
Source: Ba et al. 2016 (layer norm), Zhang and Sennrich 2019 (RMS norm). Everything is computed in
f32, t is rounded to the dtype of x first, as it is where the sum is its own operator.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton


@triton.jit
def row_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    total_ptr,
    mean_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    num_rows,
    N,
    eps,
    CENTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """Normalizes ROWS rows of N elements; SINGLE holds them in registers, else N is looped over."""
    # f64 where PyTorch's compiler launches
    eps = tl.cast(eps, tl.float32)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_mask = row < num_rows
    columns = tl.arange(0, BLOCK)[None, :]
    if SINGLE:
        mask = row_mask & (columns < N)
        t = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            r = tl.load(residual_ptr + row * residual_stride + columns, mask=mask, other=0.0)
            rounded = (t + r.to(tl.float32)).to(y_ptr.dtype.element_ty)
            tl.store(total_ptr + row * N + columns, rounded, mask=mask)
            t = rounded.to(tl.float32)
        mean = tl.zeros([ROWS, 1], tl.float32)
        if CENTER:
            mean = tl.sum(t, axis=1, keep_dims=True) / N
            t = tl.where(mask, t - mean, 0.0)
        rstd = 1.0 / tl.sqrt_rn(tl.sum(t * t, axis=1, keep_dims=True) / N + eps)
        y = t * rstd * tl.load(weight_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * N + columns, y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        mean = tl.zeros([ROWS, 1], tl.float32)
        if CENTER or HAS_RESIDUAL:
            for start in range(0, N, BLOCK):
                column = start + columns
                mask = row_mask & (column < N)
                t = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
                if HAS_RESIDUAL:
                    r = tl.load(residual_ptr + row * residual_stride + column, mask=mask, other=0.0)
                    rounded = (t + r.to(tl.float32)).to(y_ptr.dtype.element_ty)
                    tl.store(total_ptr + row * N + column, rounded, mask=mask)
                    t = rounded.to(tl.float32)
                mean += tl.sum(t, axis=1, keep_dims=True)
            mean = mean / N if CENTER else tl.zeros([ROWS, 1], tl.float32)
        # the sum is computed again: reading what this program wrote would need a barrier
        square = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, N, BLOCK):
            column = start + columns
            mask = row_mask & (column < N)
            t = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
            if HAS_RESIDUAL:
                r = tl.load(residual_ptr + row * residual_stride + column, mask=mask, other=0.0)
                t = (t + r.to(tl.float32)).to(y_ptr.dtype.element_ty).to(tl.float32)
            t = tl.where(mask, t - mean, 0.0)
            square += tl.sum(t * t, axis=1, keep_dims=True)
        rstd = 1.0 / tl.sqrt_rn(square / N + eps)
        for start in range(0, N, BLOCK):
            column = start + columns
            mask = row_mask & (column < N)
            t = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
            if HAS_RESIDUAL:
                r = tl.load(residual_ptr + row * residual_stride + column, mask=mask, other=0.0)
                t = (t + r.to(tl.float32)).to(y_ptr.dtype.element_ty).to(tl.float32)
            w = tl.load(weight_ptr + column, mask=column < N, other=0.0).to(tl.float32)
            y = (t - mean) * rstd * w
            if HAS_BIAS:
                y += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)
            tl.store(y_ptr + row * N + column, y.to(y_ptr.dtype.element_ty), mask=mask)
    if CENTER:
        tl.store(mean_ptr + row, mean, mask=row_mask)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)


def reference_row_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y and x + residual in the dtype of x, mean and rstd of each row in f32 (or f64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x if residual is None else x + residual
    t = total.to(wide)
    mean = t.mean(-1, keepdim=True) if center else t.new_zeros(())
    rstd = torch.rsqrt((t - mean).square().mean(-1, keepdim=True) + eps)
    y = (t - mean) * rstd * weight.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    kept = total if residual is not None else x.new_empty(0)
    means = mean.reshape(-1) if center else rstd.new_empty(0)
    return y.to(x.dtype), kept, means, rstd.reshape(-1)


def _allocate_row_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    num_rows = math.prod(x.shape[:-1])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(0 if residual is None else x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty(num_rows if center else 0, dtype=wide, device=x.device)
    return y, total, mean, torch.empty(num_rows, dtype=wide, device=x.device)


def _launch_row_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    center: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, total, mean, rstd = _allocate_row_norm(x, residual, weight, bias, eps, center)
    rows = rows_of(x)
    added = rows if residual is None else rows_of(residual)
    N = rows.shape[1]
    if rows.numel() == 0:
        return y, total, mean, rstd
    config = config_for("row_norm", x, N)
    block = min(block_of(N), config["max_block"])
    wrap_triton(row_norm_kernel)[(triton.cdiv(rows.shape[0], config["rows"]),)](
        rows,
        added,
        weight.contiguous(),
        weight if bias is None else bias.contiguous(),
        y,
        total,
        mean,
        rstd,
        rows.stride(0),
        added.stride(0),
        rows.shape[0],
        N,
        eps,
        CENTER=center,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        ROWS=config["rows"],
        BLOCK=block,
        SINGLE=block >= N,
        num_warps=config["warps"],
    )
    return y, total, mean, rstd


row_norm = operator(
    "row_norm",
    _launch_row_norm,
    allocate=_allocate_row_norm,
    reference=reference_row_norm,
    kernel=row_norm_kernel,
)
