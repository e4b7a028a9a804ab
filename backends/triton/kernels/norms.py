"""Layer norm and RMS norm as functions that differentiate."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from regraft.backends.triton.kernels.operands import check_operands
from regraft.backends.triton.kernels.row_norm import row_norm
from regraft.backends.triton.kernels.row_norm_backward import row_norm_backward


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, _, center = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x if residual is None else total, weight, mean, rstd)
    ctx.center = center
    ctx.has_bias = bias is not None
    ctx.has_residual = residual is not None


def _differentiate_norm(
    ctx: Any, dy: Tensor, dtotal: Tensor | None, dmean: None, drstd: None
) -> tuple[Tensor | None, ...]:
    t, weight, mean, rstd = ctx.saved_tensors
    dt, dweight, dbias = row_norm_backward(
        dy, dtotal if ctx.has_residual else None, t, weight, mean, rstd, ctx.center, ctx.has_bias
    )
    residual = dt if ctx.has_residual else None
    return dt, residual, dweight, dbias if ctx.has_bias else None, None, None


row_norm.register_autograd(_differentiate_norm, setup_context=_keep_norm)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Returns the layer norm of x [..., N] over its last axis, in the dtype of x."""
    check_operands(
        "layer_norm",
        ("weight", "bias"),
        x=(x, None),
        weight=(weight, x.shape[-1:]),
        bias=(bias, x.shape[-1:]),
    )
    y: Tensor = row_norm(x, None, weight, bias, eps, True)[0]
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Returns the RMS norm of x [..., N] over its last axis, in the dtype of x."""
    check_operands("rms_norm", ("weight",), x=(x, None), weight=(weight, x.shape[-1:]))
    y: Tensor = row_norm(x, None, weight, None, eps, False)[0]
    return y


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Returns the layer norm of x + residual, and x + residual."""
    check_operands(
        "add_layer_norm",
        ("weight", "bias"),
        x=(x, None),
        residual=(residual, x.shape),
        weight=(weight, x.shape[-1:]),
        bias=(bias, x.shape[-1:]),
    )
    y, total, _, _ = row_norm(x, residual, weight, bias, eps, True)
    return y, total


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Returns the RMS norm of x + residual, and x + residual."""
    check_operands(
        "add_rms_norm",
        ("weight",),
        x=(x, None),
        residual=(residual, x.shape),
        weight=(weight, x.shape[-1:]),
    )
    y, total, _, _ = row_norm(x, residual, weight, None, eps, False)
    return y, total
