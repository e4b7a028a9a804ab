"""Cross-entropy of logits in memory as a function that differentiates.

The gradient is one pass over the logits, whatever the loss's is. In place, the launch that finds
the loss writes the gradient over the logits, and a backward whose gradient is 1 reads and writes
nothing. Source: Hsu et al. 2024 (Liger: the gradient in the place of the logits).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.logit_loss import (
    logit_loss,
    logit_loss_gradient,
    logit_loss_kernel,
    reference_logit_loss,
    reference_logit_loss_gradient,
    row_block,
    scale_rows_kernel,
)
from regraft.backends.triton.kernels.operators import operator, wrap_triton
from regraft.backends.triton.kernels.reduced_losses import check_reduction, reduced_loss

SCALED_BLOCKS = 16
"""Blocks that a program scales: of a factor of 1, which is usual, as many fewer programs start."""


def _keep_logit_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, *settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, labels, output[1])
    ctx.settings = settings


def _differentiate_logit_loss(ctx: Any, dloss: Tensor, dsums: None) -> tuple[Tensor | None, ...]:
    logits, labels, sums = ctx.saved_tensors
    gradient = logit_loss_gradient(logits, labels, sums, dloss, *ctx.settings)
    return gradient, None, None, None, None


logit_loss.register_autograd(_differentiate_logit_loss, setup_context=_keep_logit_loss)


def reference_loss_in_place(
    logits: Tensor, labels: Tensor, factor: Tensor, smoothing: float, z_weight: float,
    softcap: float,
) -> Tensor:  # fmt: skip
    """Returns the loss of rows times the factor [1]; the logits become their gradient."""
    settings = (smoothing, z_weight, softcap)
    loss, sums = reference_logit_loss(logits, labels, *settings)
    dloss = factor.to(sums.dtype).expand(loss.shape)
    logits.copy_(reference_logit_loss_gradient(logits, labels, sums, dloss, *settings))
    return loss * dloss


def _allocate_loss_in_place(
    logits: Tensor, labels: Tensor, factor: Tensor, smoothing: float, z_weight: float,
    softcap: float,
) -> Tensor:  # fmt: skip
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.empty(logits.shape[:1], dtype=wide, device=logits.device)


def _launch_loss_in_place(
    logits: Tensor, labels: Tensor, factor: Tensor, smoothing: float, z_weight: float,
    softcap: float,
) -> Tensor:  # fmt: skip
    M, V = logits.shape
    loss = torch.empty(M, dtype=torch.float32, device=logits.device)
    if M == 0:
        return loss
    sums = torch.empty((M, 2), dtype=torch.float32, device=logits.device)
    config = config_for("logit_loss", logits, V)
    if "in_place_warps" in config:
        # a program per processor: the second-level cache holds the rows that are read twice
        own = {"max_block": config["in_place_block"], "warps": config["in_place_warps"]}
        config = {**config, **own}
    block = row_block(config, V, softcap)
    wrap_triton(logit_loss_kernel)[(M,)](
        logits, labels.contiguous(), factor, loss, sums, logits, logits.stride(0), V, smoothing,
        z_weight, softcap,
        GRADIENT=True,
        SMOOTH=smoothing > 0,
        SOFTCAP=softcap > 0,
        BLOCK=block,
        SINGLE=block >= V,
        num_warps=config["warps"],
    )  # fmt: skip
    return loss


loss_in_place = operator(
    "logit_loss_in_place",
    _launch_loss_in_place,
    allocate=_allocate_loss_in_place,
    reference=reference_loss_in_place,
    kernel=logit_loss_kernel,
    mutates=("logits",),
)


def reference_scale_rows(x: Tensor, factor: Tensor) -> None:
    """Multiplies the rows of x [M, V] by their factors [M]."""
    x.mul_(factor[:, None])


def _allocate_nothing(x: Tensor, factor: Tensor) -> None:
    return None


def _launch_scale_rows(x: Tensor, factor: Tensor) -> None:
    M, V = x.shape
    if x.numel() == 0:
        return
    config = config_for("gated", x, V)
    wrap_triton(scale_rows_kernel)[(M * triton.cdiv(V, config["block"] * SCALED_BLOCKS),)](
        x, factor, x.stride(0), factor.stride(0), V,
        BLOCK=config["block"],
        STEPS=SCALED_BLOCKS,
        num_warps=config["warps"],
    )  # fmt: skip


scale_rows = operator(
    "scale_rows",
    _launch_scale_rows,
    allocate=_allocate_nothing,
    reference=reference_scale_rows,
    kernel=scale_rows_kernel,
    mutates=("x",),
)


class LossInPlace(torch.autograd.Function):  # type: ignore[misc]  # torch is not read for types
    """The loss of rows, whose gradient stands where the logits were."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, factor: Tensor, *settings: float) -> Any:
        """Returns the loss of rows [M] times the factor [1]."""
        given = logits.detach()
        loss = loss_in_place(given, labels, factor, *settings)
        ctx.save_for_backward(given)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradient by the logits: their memory."""
        (gradient,) = ctx.saved_tensors
        scale_rows(gradient, dloss)
        return gradient, None, None, None, None, None


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    in_place: bool = False,
) -> Tensor:
    """Returns the cross-entropy of logits, in f32: its mean, sum, or one number per row.

    Args:
        logits: [..., V].
        labels: i64 [...], columns of the logits or `ignore_index`.
        ignore_index: Rows of this label do not count.
        reduction: `mean` over the rows that count, `sum`, or `none`.
        label_smoothing: Share of the loss that is the mean over all columns.
        z_loss: Weight of the squared logarithm of the sum of exponentials.
        softcap: Logits become softcap * tanh(logit / softcap).
        in_place: Whether the logits' memory becomes that of their gradient, where they have one:
            nothing else may read them, and there is one backward.

    Raises:
        ValueError: For another reduction, or for logits whose rows are apart, in place.
    """
    check_reduction("cross_entropy", reduction)
    flat = labels.reshape(-1)
    counted = torch.where(flat == ignore_index, -1, flat)
    settings = (label_smoothing, z_loss, softcap)
    if in_place and torch.is_grad_enabled() and logits.requires_grad:
        if not logits.is_contiguous():
            raise ValueError(
                f"cross_entropy: logits of strides {list(logits.stride())} have no place for a "
                "gradient\nhint: leave out `in_place`"
            )
        factor = logits.new_ones(1, dtype=torch.float32)
        if reduction == "mean":
            factor = factor / (counted >= 0).sum()
        loss = LossInPlace.apply(logits.view(-1, logits.shape[-1]), counted, factor, *settings)
        return loss.reshape(labels.shape) if reduction == "none" else loss.sum()
    loss = logit_loss(logits.reshape(-1, logits.shape[-1]), counted, *settings)[0]
    return reduced_loss(loss, labels, counted, reduction)
