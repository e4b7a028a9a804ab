"""Rows of the table about linear attention: chunks, gradients, wide heads, tokens, windows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu import peers
from benchmarks.gpu.row import GRAPHED, Randn, Row, Sizes, beside, function, gradient, graphed
from regraft import kernels
from regraft.backends.torch.library import recurrence

WINDOW = 64


def _ours(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    return kernels.linear_attention(q, k, v, decay)[0]


def _eager(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    return recurrence.linear_attention(q, k, v, None, decay.unsqueeze(3), None, 1.0, 1)[0]


def recurrence_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields linear attention with a factor per head and token."""
    item, fla = sizes.dtype.itemsize, peers.fla_linear_attention()
    shapes: tuple[tuple[int, int, int, int, int, str], ...] = (
        (8, 1, 8192, 96, 128, "1.1x fla, 40 % of a copy"), (9, 8, 1024, 8, 64, "60 us"),
        (10, 1, 8192, 16, 128, "1.1x fla"), (10, 1, 8192, 16, 256, "4.5x the time of D=128"),
    )  # fmt: skip
    if sizes.is_tiny:
        shapes = ((8, 1, 17, 2, 16, ""), (9, 2, 5, 2, 16, ""), (10, 1, 17, 1, 32, ""))
    for number, B, T, H, D, goal in shapes:

        def inputs(B: int = B, T: int = T, H: int = H, D: int = D) -> tuple[Tensor, ...]:
            q, k, v = (randn(B, H, T, D) * D**-0.5 for _ in range(3))
            return q, k, v, -randn(B, H, T).abs() * 0.1

        label, size = f"{B}x{H}x{T}x{D}", 4 * B * H * T * D * item
        if number != 10:
            own = function(_ours, inputs)
            others = beside(function, inputs, None, fla)
            if number == 8:
                others = {"eager": function(_eager, inputs), **others}
            else:
                others = {GRAPHED: graphed(own), **others}
            yield Row(number, f"linear_attention {label}", own, others, size, goal=goal)
            continue
        yield Row(10, f"linear_attention backward {label}", gradient(_ours, inputs),
                  beside(gradient, inputs, None, fla), size * 10 // 4, goal=goal)  # fmt: skip


def hybrid_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields a window of softmax attention beside linear attention of softmax features."""
    H, T, D = (2, 17, 16) if sizes.is_tiny else (32, 8192, 128)
    inputs = lambda: tuple(randn(1, H, T, D) for _ in range(3))  # noqa: E731
    fla = peers.fla_linear_attention()

    def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.attention(q, k, v, window=(WINDOW - 1, 0))

    def mapped(x: Tensor) -> Tensor:
        return torch.softmax(x.float(), -1).to(x.dtype)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return windowed(q, k, v) + kernels.linear_attention(mapped(q), mapped(k), v)[0]

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (call,) = fla.values()
        decay = torch.zeros(q.shape[:3], device=q.device, dtype=q.dtype)
        total: Tensor = windowed(q, k, v) + call(mapped(q), mapped(k), v, decay)
        return total

    yield Row(11, f"window and linear attention {H}x{T}x{D}", function(ours, inputs),
              {"fla apart": function(apart, inputs)} if fla else {},
              4 * H * T * D * sizes.dtype.itemsize, goal="2x separate launches")  # fmt: skip


def step_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields a token of every sequence: the state is read and written."""
    B, H, D = (2, 2, 16) if sizes.is_tiny else (64, 32, 128)

    def inputs() -> tuple[Tensor, ...]:
        q, k, v = (randn(B, H, 1, D) for _ in range(3))
        return q, k, v, -randn(B, H, 1).abs(), randn(B, H, D, D).float()

    def ours(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> object:
        return kernels.linear_attention(q, k, v, decay, state=state)

    def eager(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> object:
        after = state * decay.float().exp().unsqueeze(3) + k.transpose(2, 3).float() @ v.float()
        return (q.float() @ after).to(q.dtype), after

    yield Row(12, f"linear_attention of a token {B}x{H}x{D}", function(ours, inputs),
              beside(function, inputs, eager, peers.fla_step()), 2 * B * H * D * D * 4,
              goal="80 % of a copy")  # fmt: skip


def inverse_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields the Newton inverse of attention with landmarks, and its gradient."""
    B, N = (2, 8) if sizes.is_tiny else (256, 64)

    def inputs() -> tuple[Tensor, ...]:
        x = randn(B, N, N).float() * N**-0.5
        return (x @ x.transpose(1, 2) + torch.eye(N, device=x.device),)

    def eager(a: Tensor) -> Tensor:
        x = a * (1.8 / a.abs().sum(2).amax(1) ** 2)[:, None, None]
        for _ in range(20):
            x = 2 * x - x @ a @ x
        return x

    def ours(a: Tensor, precision: str = "ieee") -> Tensor:
        start = a * (1.8 / a.abs().sum(2).amax(1) ** 2)[:, None, None]
        return kernels.newton_inverse(a, start, steps=20, precision=precision)

    def rounded(a: Tensor) -> Tensor:
        return ours(a, "tf32")

    flops = 20 * 2 * 2 * B * N**3
    yield Row(20, f"Newton inverse {B}x{N}x{N}", function(ours, inputs),
              {GRAPHED: graphed(function(ours, inputs)), **beside(function, inputs, eager)},
              flops=flops, goal="5x a loop")  # fmt: skip
    yield Row(20, f"Newton inverse backward, tf32 {B}x{N}x{N}", gradient(rounded, inputs),
              beside(gradient, inputs, eager), flops=flops + 20 * 5 * 2 * B * N**3)  # fmt: skip
