"""SwiGLU and GeGLU: act(gate) * up, and the gradients of both.

Source: Shazeer 2020, "GLU Variants Improve Transformer". gate and up may be the halves of one
tensor: rows have their own stride, nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.operands import check_choice, check_operands
from regraft.backends.triton.kernels.operators import operator, rows_of, wrap_triton

GATED_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@triton.jit
def normal_cdf(x):
    """Returns the distribution function of the standard normal."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def tanh_argument(x):
    """Returns z with 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) = 1 / (1 + e^-z)."""
    return 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)


@triton.jit
def tanh_gate(x):
    """Returns the factor of x in the tanh form of GELU."""
    return tl.sigmoid(tanh_argument(x))


@triton.jit
def gated_kernel(
    gate_ptr,
    up_ptr,
    y_ptr,
    gate_stride,
    up_stride,
    N,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes BLOCK elements of act(gate) * up; tiles go through a row, then to the next row."""
    tiles = tl.cdiv(N, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < N
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        y = gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "gelu":
        y = gate * normal_cdf(gate) * up
    else:
        y = gate * tanh_gate(gate) * up
    tl.store(y_ptr + row * N + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_backward_kernel(
    dy_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    dy_stride,
    gate_stride,
    up_stride,
    N,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes dgate = dy * up * act'(gate) and dup = dy * act(gate), act computed again."""
    tiles = tl.cdiv(N, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < N
    dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        s = tl.sigmoid(gate)
        slope = s * (1.0 + gate * (1.0 - s))
    elif ACTIVATION == "gelu":
        s = normal_cdf(gate)
        slope = s + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    else:
        z = tanh_argument(gate)
        s = tl.sigmoid(z)
        # the derivative of the argument: 2 sqrt(2/pi) * (1 + 3 * 0.044715 x^2)
        inner = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
        # 1 - s as a function of its own: the difference has few digits where s is near 1
        slope = s + gate * (s * tl.sigmoid(-z)) * inner
    out = row * N + column
    dgate = dy * up * slope
    tl.store(dgate_ptr + out, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dup_ptr + out, (dy * gate * s).to(dup_ptr.dtype.element_ty), mask=mask)


def _activate_gate(gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.nn.functional.gelu(gate, approximate=approximate)


def reference_gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Returns act(gate) * up."""
    return _activate_gate(gate, activation) * up


def reference_gated_backward(
    dy: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Returns the gradients by gate and up."""
    if activation == "silu":
        slope = torch.ops.aten.silu_backward(dy * up, gate)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        slope = torch.ops.aten.gelu_backward(dy * up, gate, approximate=approximate)
    return slope, dy * _activate_gate(gate, activation)


def _gated_rows(*tensors: Tensor) -> list[Tensor]:
    """Returns the tensors as [R, N]; one row where all are contiguous."""
    if all(t.is_contiguous() for t in tensors):
        return [t.reshape(1, -1) for t in tensors]
    return [rows_of(t) for t in tensors]


def _allocate_gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


def _launch_gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    y = _allocate_gated(gate, up, activation)
    if gate.numel() == 0:
        return y
    gates, ups = _gated_rows(gate, up)
    R, N = gates.shape
    config = config_for("gated", gate, N)
    wrap_triton(gated_kernel)[(R * triton.cdiv(N, config["block"]),)](
        gates,
        ups,
        y,
        gates.stride(0),
        ups.stride(0),
        N,
        ACTIVATION=activation,
        BLOCK=config["block"],
        num_warps=config["warps"],
    )
    return y


def _allocate_gated_backward(
    dy: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    return dgate, torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


def _launch_gated_backward(
    dy: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    dgate, dup = _allocate_gated_backward(dy, gate, up, activation)
    if gate.numel() == 0:
        return dgate, dup
    grads, gates, ups = _gated_rows(dy, gate, up)
    R, N = gates.shape
    config = config_for("gated", gate, N)
    wrap_triton(gated_backward_kernel)[(R * triton.cdiv(N, config["block"]),)](
        grads,
        gates,
        ups,
        dgate,
        dup,
        grads.stride(0),
        gates.stride(0),
        ups.stride(0),
        N,
        ACTIVATION=activation,
        BLOCK=config["block"],
        num_warps=config["warps"],
    )
    return dgate, dup


gated = operator(
    "gated", _launch_gated, allocate=_allocate_gated, reference=reference_gated, kernel=gated_kernel
)
gated_backward = operator(
    "gated_backward",
    _launch_gated_backward,
    allocate=_allocate_gated_backward,
    reference=reference_gated_backward,
    kernel=gated_backward_kernel,
)


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, activation = inputs
    ctx.save_for_backward(gate, up)
    ctx.activation = activation


def _differentiate_gated(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    gate, up = ctx.saved_tensors
    dgate, dup = gated_backward(dy, gate, up, ctx.activation)
    return dgate, dup, None


gated.register_autograd(_differentiate_gated, setup_context=_keep_gated)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Returns silu(gate) * up, both [..., N] of one shape and dtype."""
    check_operands("swiglu", gate=(gate, None), up=(up, gate.shape))
    y: Tensor = gated(gate, up, "silu")
    return y


def geglu(gate: Tensor, up: Tensor, approximate: str = "none") -> Tensor:
    """Returns gelu(gate) * up; `approximate` is that of `torch.nn.functional.gelu`."""
    check_operands("geglu", gate=(gate, None), up=(up, gate.shape))
    check_choice("geglu", "approximation", approximate, ("none", "tanh"))
    y: Tensor = gated(gate, up, "gelu_tanh" if approximate == "tanh" else "gelu")
    return y
