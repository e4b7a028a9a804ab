"""Gradients of layer norm and RMS norm.

With n = (t - mean) * rstd and g = dy * weight:
dt = rstd * (g - mean(g) - n * mean(g * n)), without mean(g) for RMS norm; dweight = sum(dy * n)
and dbias = sum(dy) over rows. A program takes every P-th tile of rows and keeps its share of
dweight and dbias in registers, in f32; one sum over programs follows, in an order that does not
change from run to run. Rows too long for registers take a second kernel over columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for, num_processors
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton

COLUMN_TILE = (32, 64)
"""Rows and columns that the kernel over columns reads at once."""


@triton.jit
def row_norm_backward_kernel(
    dy_ptr,
    dtotal_ptr,
    t_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dt_ptr,
    dweight_ptr,
    dbias_ptr,
    dy_stride,
    dtotal_stride,
    t_stride,
    num_rows,
    N,
    CENTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes dt of tiles of rows and, when SINGLE, this program's share of dweight and dbias."""
    columns = tl.arange(0, BLOCK)[None, :]
    program = tl.program_id(0)
    if SINGLE:
        w = tl.load(weight_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
        dweight = tl.zeros([ROWS, BLOCK], tl.float32)
        dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    # stages are stated: a loop without products has its loads ahead only where it says so
    tiles = tl.cdiv(num_rows, ROWS)
    for tile in tl.range(program, tiles, tl.num_programs(0), num_stages=STAGES):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        row = rows[:, None]
        row_mask = row < num_rows
        # loaded as a vector: as a column, every thread would read it once per element it holds
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        mean = tl.zeros([ROWS, 1], tl.float32)
        if CENTER:
            mean = tl.load(mean_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        if SINGLE:
            mask = row_mask & (columns < N)
            dy = tl.load(dy_ptr + row * dy_stride + columns, mask=mask, other=0.0).to(tl.float32)
            t = tl.load(t_ptr + row * t_stride + columns, mask=mask, other=0.0).to(tl.float32)
            n = tl.where(mask, (t - mean) * rstd, 0.0)
            dweight += dy * n
            if HAS_BIAS:
                dbias += dy
            g = dy * w
            dt = g - n * (tl.sum(g * n, axis=1, keep_dims=True) / N)
            if CENTER:
                dt -= tl.sum(g, axis=1, keep_dims=True) / N
            dt *= rstd
            if HAS_TOTAL:
                d = tl.load(dtotal_ptr + row * dtotal_stride + columns, mask=mask, other=0.0)
                dt += d.to(tl.float32)
            tl.store(dt_ptr + row * N + columns, dt.to(dt_ptr.dtype.element_ty), mask=mask)
        else:
            g_sum = tl.zeros([ROWS, 1], tl.float32)
            gn_sum = tl.zeros([ROWS, 1], tl.float32)
            for start in range(0, N, BLOCK):
                column = start + columns
                mask = row_mask & (column < N)
                dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0)
                t = tl.load(t_ptr + row * t_stride + column, mask=mask, other=0.0).to(tl.float32)
                w = tl.load(weight_ptr + column, mask=column < N, other=0.0).to(tl.float32)
                g = dy.to(tl.float32) * w
                g_sum += tl.sum(g, axis=1, keep_dims=True)
                gn_sum += tl.sum(g * (t - mean) * rstd, axis=1, keep_dims=True)
            for start in range(0, N, BLOCK):
                column = start + columns
                mask = row_mask & (column < N)
                dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0)
                t = tl.load(t_ptr + row * t_stride + column, mask=mask, other=0.0).to(tl.float32)
                w = tl.load(weight_ptr + column, mask=column < N, other=0.0).to(tl.float32)
                dt = dy.to(tl.float32) * w - (t - mean) * rstd * (gn_sum / N)
                if CENTER:
                    dt -= g_sum / N
                dt *= rstd
                if HAS_TOTAL:
                    d = tl.load(dtotal_ptr + row * dtotal_stride + column, mask=mask, other=0.0)
                    dt += d.to(tl.float32)
                tl.store(dt_ptr + row * N + column, dt.to(dt_ptr.dtype.element_ty), mask=mask)
    if SINGLE:
        share = program * N + tl.arange(0, BLOCK)
        tl.store(dweight_ptr + share, tl.sum(dweight, axis=0), mask=tl.arange(0, BLOCK) < N)
        if HAS_BIAS:
            tl.store(dbias_ptr + share, tl.sum(dbias, axis=0), mask=tl.arange(0, BLOCK) < N)


@triton.jit
def norm_weight_gradient_kernel(
    dy_ptr,
    t_ptr,
    mean_ptr,
    rstd_ptr,
    dweight_ptr,
    dbias_ptr,
    dy_stride,
    t_stride,
    num_rows,
    N,
    CENTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes a share of dweight and dbias: COLUMNS columns over every P-th tile of rows."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    dweight = tl.zeros([ROWS, COLUMNS], tl.float32)
    dbias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(num_rows, ROWS), tl.num_programs(1)):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        row = rows[:, None]
        mask = (row < num_rows) & (column < N)
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(t_ptr + row * t_stride + column, mask=mask, other=0.0).to(tl.float32)
        if CENTER:
            t -= tl.load(mean_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        dweight += dy * t * rstd
        if HAS_BIAS:
            dbias += dy
    out = tl.program_id(1) * N + tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    out_mask = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS) < N
    tl.store(dweight_ptr + out, tl.sum(dweight, axis=0), mask=out_mask)
    if HAS_BIAS:
        tl.store(dbias_ptr + out, tl.sum(dbias, axis=0), mask=out_mask)


def reference_row_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    t: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    center: bool,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dt [..., N], dweight [N] and dbias [N] (empty without a bias)."""
    wide = rstd.dtype
    grad = dy.reshape(-1, dy.shape[-1]).to(wide)
    n = t.reshape(grad.shape).to(wide)
    if center:
        n = n - mean.unsqueeze(1)
    n = n * rstd.unsqueeze(1)
    g = grad * weight.to(wide)
    dt = g - n * (g * n).mean(1, keepdim=True)
    if center:
        dt = dt - g.mean(1, keepdim=True)
    dt = dt * rstd.unsqueeze(1)
    if dtotal is not None:
        dt = dt + dtotal.reshape(grad.shape).to(wide)
    dbias = grad.sum(0) if has_bias else grad.new_empty(0)
    return (
        dt.reshape(dy.shape).to(dy.dtype),
        (grad * n).sum(0).to(weight.dtype),
        dbias.to(weight.dtype),
    )


def _allocate_row_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    t: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    center: bool,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    N = dy.shape[-1]
    dt = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device)
    dweight = torch.empty(N, dtype=weight.dtype, device=dy.device)
    return dt, dweight, torch.empty(N if has_bias else 0, dtype=weight.dtype, device=dy.device)


def _launch_row_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    t: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    center: bool,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dt, dweight, dbias = _allocate_row_norm_backward(
        dy, dtotal, t, weight, mean, rstd, center, has_bias
    )
    grad = rows_of(dy)
    kept = rows_of(t)
    added = grad if dtotal is None else rows_of(dtotal)
    num_rows, N = grad.shape
    if grad.numel() == 0:
        return dt, dweight.zero_(), dbias.zero_()
    config = config_for("row_norm_backward", dy, N)
    block = min(block_of(N), config["max_block"])
    tiles = triton.cdiv(num_rows, config["rows"])
    programs = min(tiles, num_processors(dy.device) * config["per_processor"])
    column_rows, column_width = COLUMN_TILE
    splits = programs
    if block < N:
        wanted = triton.cdiv(num_processors(dy.device) * 8, triton.cdiv(N, column_width))
        splits = max(1, min(triton.cdiv(num_rows, column_rows), wanted))
    dweights = torch.empty((splits, N), dtype=torch.float32, device=dy.device)
    dbiases = torch.empty((splits if has_bias else 0, N), dtype=torch.float32, device=dy.device)
    wrap_triton(row_norm_backward_kernel)[(programs,)](
        grad,
        added,
        kept,
        weight.contiguous(),
        mean,
        rstd,
        dt,
        dweights,
        dbiases,
        grad.stride(0),
        added.stride(0),
        kept.stride(0),
        num_rows,
        N,
        CENTER=center,
        HAS_BIAS=has_bias,
        HAS_TOTAL=dtotal is not None,
        ROWS=config["rows"],
        BLOCK=block,
        SINGLE=block >= N,
        STAGES=config["stages"] if block >= N else 1,
        num_warps=config["warps"],
    )
    if block < N:
        wrap_triton(norm_weight_gradient_kernel)[(triton.cdiv(N, column_width), splits)](
            grad,
            kept,
            mean,
            rstd,
            dweights,
            dbiases,
            grad.stride(0),
            kept.stride(0),
            num_rows,
            N,
            CENTER=center,
            HAS_BIAS=has_bias,
            ROWS=column_rows,
            COLUMNS=column_width,
            num_warps=4,
        )
    dweight = dweights.sum(0).to(weight.dtype)
    return dt, dweight, dbiases.sum(0).to(weight.dtype) if has_bias else dbias


row_norm_backward = operator(
    "row_norm_backward",
    _launch_row_norm_backward,
    allocate=_allocate_row_norm_backward,
    reference=reference_row_norm_backward,
    kernel=row_norm_backward_kernel,
)
