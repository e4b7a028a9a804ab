"""Cross-entropy of logits that are in memory, and its gradient, in f32 whatever they are.

loss = (1 - s) (z - x[label]) + s (z - mean(x)) + w z^2 with z = log sum exp(x), s the smoothing of
labels and w the weight of z; x may be softcap * tanh(logit / softcap). A row is read once, and once
more for its gradient, which one launch may write over the logits: that goes from the row's end to
its start, so that what was read last is still in the second-level cache.
Source: Milakov and Gimelshein 2018 (the running maximum); Szegedy et al. 2016 (smoothed labels);
Chowdhery et al. 2022 (the weight of z).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import exact_tanh
from regraft.backends.triton.kernels.configs import Config, config_for
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton


@triton.jit
def logit_row(x_ptr, column, V, softcap, SOFTCAP: tl.constexpr):
    """Returns logits f32 of a row, -inf beyond its end, and tanh(logit / softcap)."""
    x = tl.load(x_ptr + column, mask=column < V, other=float("-inf")).to(tl.float32)
    capped = x
    if SOFTCAP:
        capped = exact_tanh(x / softcap)
        x = tl.where(column < V, capped * softcap, float("-inf"))
    return x, capped


@triton.jit
def slope_of_logits(
    x, capped, column, label, largest, log_total, V, smoothing, z_weight,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Returns the gradient of a row's loss by its logits."""
    z = largest + log_total
    d = tl.exp(x - largest - log_total) * (1.0 + 2.0 * z_weight * z) - smoothing / V
    d = tl.where(column == label, d - (1.0 - smoothing), d)
    if SOFTCAP:
        d = d * (1.0 - capped * capped)
    return d


@triton.jit
def logit_loss_kernel(
    x_ptr, labels_ptr, factor_ptr, loss_ptr, sums_ptr, gradient_ptr, x_stride, V, smoothing,
    z_weight, softcap,
    GRADIENT: tl.constexpr,
    SMOOTH: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    """Writes a row's loss, its maximum and the logarithm of its sum, and its gradient if asked."""
    # f64 where PyTorch's compiler launches
    smoothing = tl.cast(smoothing, tl.float32)
    z_weight = tl.cast(z_weight, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    label = tl.load(labels_ptr + row)
    factor = tl.load(factor_ptr).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    blocks = tl.cdiv(V, BLOCK)
    # read on its own, not found among all columns; 0 for a label that no column has
    is_column = (label >= 0) & (label < V)
    chosen = tl.load(x_ptr + label, mask=is_column, other=0.0).to(tl.float32)
    if SOFTCAP:
        chosen = exact_tanh(chosen / softcap) * softcap
    every = 0.0
    if SINGLE:
        x, capped = logit_row(x_ptr, columns, V, softcap, SOFTCAP)
        largest = tl.max(x, axis=0)
        total = tl.sum(tl.exp(x - largest), axis=0)
        if SMOOTH:
            every = tl.sum(tl.where(columns < V, x, 0.0), axis=0)
    else:
        # sums of exponentials stay apart for every column of a block, as registers allow of one
        # sum: threads meet for the block's maximum alone
        largest = float("-inf")
        totals = tl.zeros([BLOCK], tl.float32)
        for block in range(0, blocks):
            column = block * BLOCK + columns
            x, _ = logit_row(x_ptr, column, V, softcap, SOFTCAP)
            found = tl.maximum(largest, tl.max(x, axis=0))
            # -inf so far: subtracting it from -inf would give NaN where zero is meant
            base = tl.where(found == float("-inf"), 0.0, found)
            totals = totals * tl.exp(largest - base) + tl.exp(x - base)
            largest = found
            if SMOOTH:
                every += tl.sum(tl.where(column < V, x, 0.0), axis=0)
        total = tl.sum(totals, axis=0)
    log_total = tl.log(total)
    z = largest + log_total
    # apart: their sum would have the last digits of the larger one
    loss = (largest - chosen) + log_total + z_weight * z * z
    if SMOOTH:
        loss += smoothing * (chosen - every / V)
    # without a row that counts, the factor of a mean is infinite, and the loss NaN
    # the reference raises; a kernel does not wait for the labels to reach the host
    loss = tl.where(label < V, loss, float("nan"))
    tl.store(loss_ptr + row, tl.where(label >= 0, loss, 0.0) * factor)
    tl.store(sums_ptr + 2 * row, largest)
    tl.store(sums_ptr + 2 * row + 1, log_total)
    if GRADIENT:
        factor = tl.where(label >= 0, factor, 0.0)
        out_ptr = gradient_ptr + row * x_stride
        if SINGLE:
            d = slope_of_logits(
                x, capped, columns, label, largest, log_total, V, smoothing, z_weight, SOFTCAP
            )
            d = (d * factor).to(gradient_ptr.dtype.element_ty)
            tl.store(out_ptr + columns, d, mask=columns < V)
        else:
            for block in range(0, blocks):
                column = (blocks - 1 - block) * BLOCK + columns
                x, capped = logit_row(x_ptr, column, V, softcap, SOFTCAP)
                d = slope_of_logits(
                    x, capped, column, label, largest, log_total, V, smoothing, z_weight, SOFTCAP
                )
                d = (d * factor).to(gradient_ptr.dtype.element_ty)
                tl.store(out_ptr + column, d, mask=column < V)


@triton.jit
def logit_loss_gradient_kernel(
    x_ptr, labels_ptr, sums_ptr, dloss_ptr, gradient_ptr, x_stride, dloss_stride, V, smoothing,
    z_weight, softcap,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK elements of the gradient by a row's logits."""
    # f64 where PyTorch's compiler launches
    smoothing = tl.cast(smoothing, tl.float32)
    z_weight = tl.cast(z_weight, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    tiles = tl.cdiv(V, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + row)
    dloss = tl.load(dloss_ptr + row * dloss_stride).to(tl.float32)
    largest = tl.load(sums_ptr + 2 * row)
    log_total = tl.load(sums_ptr + 2 * row + 1)
    x, capped = logit_row(x_ptr + row * x_stride, column, V, softcap, SOFTCAP)
    d = slope_of_logits(
        x, capped, column, label, largest, log_total, V, smoothing, z_weight, SOFTCAP
    )
    d = d * tl.where(label >= 0, dloss, 0.0)
    out = gradient_ptr + row * V + column
    tl.store(out, d.to(gradient_ptr.dtype.element_ty), mask=column < V)


@triton.jit
def scale_rows_kernel(
    x_ptr, factor_ptr, x_stride, factor_stride, V, BLOCK: tl.constexpr, STEPS: tl.constexpr
):
    """Multiplies STEPS blocks of a row by its factor; of 1, nothing is read or written."""
    tiles = tl.cdiv(V, BLOCK * STEPS)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK * STEPS
    factor = tl.load(factor_ptr + row * factor_stride).to(tl.float32)
    if factor != 1.0:
        for start in range(first, min(first + BLOCK * STEPS, V), BLOCK):
            column = start + tl.arange(0, BLOCK)
            place = x_ptr + row * x_stride + column
            x = tl.load(place, mask=column < V, other=0.0).to(tl.float32)
            tl.store(place, (x * factor).to(x_ptr.dtype.element_ty), mask=column < V)


def row_block(config: Config, V: int, softcap: float) -> int:
    """Returns the elements of a row that a program has at once: all, where they fit."""
    block = block_of(V)
    if block <= config["max_block"]:
        return block
    # a tanh takes registers
    return config["max_block"] // 2 if softcap > 0 else config["max_block"]


def logit_terms(logits: Tensor, softcap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns logits in f32 (or f64), tanh(logit / softcap), maxima and logarithms of sums."""
    x = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    capped = torch.tanh(x / softcap) if softcap > 0 else x
    x = capped * softcap if softcap > 0 else x
    largest = x.amax(1)
    return x, capped, largest, torch.log(torch.exp(x - largest[:, None]).sum(1))


def reference_logit_loss(
    logits: Tensor, labels: Tensor, smoothing: float, z_weight: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Returns the loss of rows [M], and maximum and logarithm of the sum [M, 2]."""
    x, _, largest, log_total = logit_terms(logits, softcap)
    chosen = x.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    z = largest + log_total
    loss = largest - chosen + log_total + z_weight * z.square()
    if smoothing > 0:
        loss = loss + smoothing * (chosen - x.mean(1))
    return torch.where(labels >= 0, loss, 0), torch.stack((largest, log_total), -1)


def _allocate_logit_loss(
    logits: Tensor, labels: Tensor, smoothing: float, z_weight: float, softcap: float
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    M = logits.shape[0]
    loss = torch.empty(M, dtype=wide, device=logits.device)
    return loss, torch.empty((M, 2), dtype=wide, device=logits.device)


def _launch_logit_loss(
    logits: Tensor, labels: Tensor, smoothing: float, z_weight: float, softcap: float
) -> tuple[Tensor, Tensor]:
    loss, sums = _allocate_logit_loss(logits, labels, smoothing, z_weight, softcap)
    M, V = logits.shape
    if M == 0:
        return loss, sums
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    config = config_for("logit_loss", logits, V)
    block = row_block(config, V, softcap)
    one = torch.ones(1, dtype=torch.float32, device=logits.device)
    wrap_triton(logit_loss_kernel)[(M,)](
        logits, labels.contiguous(), one, loss, sums, logits, logits.stride(0), V, smoothing,
        z_weight, softcap,
        GRADIENT=False,
        SMOOTH=smoothing > 0,
        SOFTCAP=softcap > 0,
        BLOCK=block,
        SINGLE=block >= V,
        num_warps=config["warps"],
    )  # fmt: skip
    return loss, sums


logit_loss = operator(
    "logit_loss",
    _launch_logit_loss,
    allocate=_allocate_logit_loss,
    reference=reference_logit_loss,
    kernel=logit_loss_kernel,
)


def reference_logit_loss_gradient(
    logits: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, smoothing: float,
    z_weight: float, softcap: float,
) -> Tensor:  # fmt: skip
    """Returns the gradient by the logits [M, V], in their dtype."""
    x, capped, _, _ = logit_terms(logits, softcap)
    z = sums.sum(1, keepdim=True)
    d = torch.exp(x - sums[:, :1] - sums[:, 1:]) * (1 + 2 * z_weight * z) - smoothing / x.shape[1]
    words = torch.arange(x.shape[1], device=x.device)
    d = torch.where(words == labels[:, None], d - (1 - smoothing), d)
    d = d * (1 - capped.square()) if softcap > 0 else d
    return (d * torch.where(labels >= 0, dloss, 0)[:, None]).to(logits.dtype)


def _allocate_logit_loss_gradient(
    logits: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, smoothing: float,
    z_weight: float, softcap: float,
) -> Tensor:  # fmt: skip
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _launch_logit_loss_gradient(
    logits: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, smoothing: float,
    z_weight: float, softcap: float,
) -> Tensor:  # fmt: skip
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    M, V = logits.shape
    if gradient.numel() == 0:
        return gradient
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    config = config_for("gated", logits, V)
    wrap_triton(logit_loss_gradient_kernel)[(M * triton.cdiv(V, config["block"]),)](
        logits, labels.contiguous(), sums.contiguous(), dloss, gradient, logits.stride(0),
        dloss.stride(0), V, smoothing, z_weight, softcap,
        SOFTCAP=softcap > 0,
        BLOCK=config["block"],
        num_warps=config["warps"],
    )  # fmt: skip
    return gradient


logit_loss_gradient = operator(
    "logit_loss_gradient",
    _launch_logit_loss_gradient,
    allocate=_allocate_logit_loss_gradient,
    reference=reference_logit_loss_gradient,
    kernel=logit_loss_gradient_kernel,
)
