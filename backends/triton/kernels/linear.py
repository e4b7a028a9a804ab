"""A matrix product with bias and activation in its epilogue.

act(x @ weight.T + bias), sums in f32. Programs go through the tiles of the result in groups of
rows, so that tiles of the weight are still in the second-level cache when the next row asks for
them (Triton's tutorial on matrix multiplication). The gradient computes the sum again where the
activation needs it, instead of keeping it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.gated import normal_cdf, tanh_gate
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_choice,
    check_operands,
    in_autocast,
)
from regraft.backends.triton.kernels.operators import operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import (
    add_product,
    place_of_tile,
    store_tile,
    with_bias,
)

LINEAR_ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh")


@triton.jit
def product_of(
    x_ptr,
    weight_ptr,
    m,
    n,
    num_rows,
    N,
    K,
    x_stride,
    weight_n_stride,
    weight_k_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Returns the rows m and columns n of x @ weight.T in f32."""
    k = tl.arange(0, BLOCK_K)
    # rows past the end wrap around instead of being masked; they are not stored
    x_tile = x_ptr + (m % num_rows).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_tile = (
        weight_ptr
        + (n % N).to(tl.int64)[None, :] * weight_n_stride
        + k.to(tl.int64)[:, None] * weight_k_stride
    )
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    return add_product(total, x_tile, w_tile, K, weight_k_stride, PRECISION, BLOCK_K)


@triton.jit
def linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    x_stride,
    weight_n_stride,
    weight_k_stride,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes one tile [BLOCK_M, BLOCK_N] of act(x @ weight.T + bias)."""
    m, n = place_of_tile(M, N, BLOCK_M, BLOCK_N, GROUP)
    total = product_of(
        x_ptr,
        weight_ptr,
        m,
        n,
        M,
        N,
        K,
        x_stride,
        weight_n_stride,
        weight_k_stride,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if HAS_BIAS:
        total = with_bias(total, bias_ptr, n, N)
    if ACTIVATION == "relu":
        total = tl.where(total < 0.0, 0.0, total)  # keeps NaN, as `tl.maximum` does not
    elif ACTIVATION == "silu":
        total = total * tl.sigmoid(total)
    elif ACTIVATION == "gelu":
        total = total * normal_cdf(total)
    elif ACTIVATION == "gelu_tanh":
        total = total * tanh_gate(total)
    store_tile(y_ptr, total, m, n, M, N)


def reference_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, precision: str
) -> Tensor:
    """Returns act(x @ weight.T + bias)."""
    y = torch.nn.functional.linear(x, weight, bias)
    match activation:
        case "relu":
            return torch.relu(y)
        case "silu":
            return torch.nn.functional.silu(y)
        case "gelu":
            return torch.nn.functional.gelu(y)
        case "gelu_tanh":
            return torch.nn.functional.gelu(y, approximate="tanh")
        case _:
            return y


def _allocate_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, precision: str
) -> Tensor:
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)


def _launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, precision: str
) -> Tensor:
    y = _allocate_linear(x, weight, bias, activation, precision)
    if y.numel() == 0:
        return y
    rows = rows_of(x)
    M, K = rows.shape
    N = weight.shape[0]
    config = config_for("linear", x, M)
    grid = (triton.cdiv(M, config["m"]) * triton.cdiv(N, config["n"]),)
    wrap_triton(linear_kernel)[grid](
        rows,
        weight,
        weight if bias is None else bias.contiguous(),
        y,
        M,
        N,
        K,
        rows.stride(0),
        weight.stride(0),
        weight.stride(1),
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
        PRECISION=precision,
        BLOCK_M=config["m"],
        BLOCK_N=config["n"],
        BLOCK_K=config["k"],
        GROUP=config["group"],
        num_warps=config["warps"],
        num_stages=config["stages"],
    )
    return y


linear_forward = operator(
    "linear",
    _launch_linear,
    allocate=_allocate_linear,
    reference=reference_linear,
    kernel=linear_kernel,
)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, activation, precision = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.activation = activation
    ctx.precision = precision


def _epilogue_gradient(dy: Tensor, total: Tensor, activation: str) -> Tensor:
    gradient: Tensor
    match activation:
        case "relu":
            gradient = torch.where(total > 0, dy, 0)
        case "silu":
            gradient = torch.ops.aten.silu_backward(dy, total)
        case "gelu":
            gradient = torch.ops.aten.gelu_backward(dy, total)
        case _:
            gradient = torch.ops.aten.gelu_backward(dy, total, approximate="tanh")
    return gradient


def _differentiate_linear(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    if ctx.activation != "none":
        total = linear_forward(x, weight, bias, "none", ctx.precision)
        dy = _epilogue_gradient(dy, total, ctx.activation)
    rows = dy.reshape(-1, dy.shape[-1])
    dx = dy @ weight if ctx.needs_input_grad[0] else None
    dweight = rows.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
    dbias = rows.sum(0) if bias is not None and ctx.needs_input_grad[2] else None
    return dx, dweight, dbias, None, None


linear_forward.register_autograd(_differentiate_linear, setup_context=_keep_linear)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    precision: str = "ieee",
) -> Tensor:
    """Returns act(x @ weight.T + bias) of x [..., K] and weight [N, K] of one dtype.

    Args:
        x: Any strides.
        weight: Any strides; the transpose of a [K, N] tensor is read in place.
        bias: [N].
        activation: One of `LINEAR_ACTIVATIONS`.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Sizes differ, or the activation or the precision is not known.
    """
    if activation not in LINEAR_ACTIVATIONS:
        raise ValueError(
            f"linear: activation `{activation}` is not one of {', '.join(LINEAR_ACTIVATIONS)}\n"
            "hint: compute another one on the result"
        )
    x, weight, bias = in_autocast(x, weight, bias)
    sizes = (*weight.shape[:1], *x.shape[-1:])
    check_operands("linear", x=(x, None), weight=(weight, sizes), bias=(bias, sizes[:1]))
    check_choice("linear", "precision", precision, PRECISIONS)
    y: Tensor = linear_forward(x, weight, bias, activation, precision)
    return y
