"""Rows of the table that memory limits: norms, softmax, gated activations, rotation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import peers
from benchmarks.gpu.row import Randn, Row, Sizes, beside, function, gradient
from regraft import kernels


def norm_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields norms and their gradients, at a size beyond every cache and at one near it."""
    N, item = sizes.width, sizes.dtype.itemsize

    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (N,), w, b)

    def rms(x: Tensor, w: Tensor) -> Tensor:
        return F.rms_norm(x, (N,), w, 1e-6)

    def added(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return rms(total, w), total

    for R, goal in ((sizes.rows, "90 % of a copy"), (max(1, sizes.rows // 4), "75 % of a copy")):
        one = 2 * R * N * item
        for name, ours, peer, liger, inputs in (
            ("layer_norm", kernels.layer_norm, layer, peers.liger_layer_norm(),
             lambda R=R: (randn(R, N), randn(N), randn(N))),
            ("rms_norm", kernels.rms_norm, rms, peers.liger_rms_norm(),
             lambda R=R: (randn(R, N), randn(N))),
        ):  # fmt: skip
            yield Row(1, f"{name} {R}x{N}", function(ours, inputs),
                      beside(function, inputs, peer, liger), one, goal=goal)  # fmt: skip
            yield Row(2, f"{name} backward {R}x{N}", gradient(ours, inputs),
                      beside(gradient, inputs, peer, liger), one * 3 // 2,
                      goal="70 % of a copy, 2.5x Liger")  # fmt: skip
    R = sizes.rows
    three = lambda: (randn(R, N), randn(R, N), randn(N))  # noqa: E731
    yield Row(1, f"add_rms_norm {R}x{N}", function(kernels.add_rms_norm, three),
              beside(function, three, added), 4 * R * N * item, goal="90 % of a copy")  # fmt: skip


def softmax_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields softmax in one pass over registers, and in two passes over long rows."""
    R, N, item = sizes.rows, sizes.width, sizes.dtype.itemsize

    def soft(x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    for label, two_pass, width in (("softmax", False, N), ("softmax two-pass", True, 16 * N)):
        rows = max(1, R * N // width)
        inputs = lambda rows=rows, width=width: (randn(rows, width),)  # noqa: E731

        def ours(x: Tensor, two_pass: bool = two_pass) -> Tensor:
            return kernels.softmax(x, two_pass)

        size = 2 * rows * width * item
        yield Row(19, f"{label} {rows}x{width}", function(ours, inputs),
                  beside(function, inputs, soft), size)  # fmt: skip


def gated_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields SwiGLU and GeGLU with their gradients."""
    R, N = sizes.rows, sizes.width
    size = R * N * sizes.dtype.itemsize
    two = lambda: (randn(R, N), randn(R, N))  # noqa: E731

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def geglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up

    def our_geglu(gate: Tensor, up: Tensor) -> Tensor:
        return kernels.geglu(gate, up, "tanh")

    for name, ours, eager in (
        ("swiglu", kernels.swiglu, swiglu),
        ("geglu", our_geglu, geglu),
    ):
        liger = peers.liger_gated(name)
        yield Row(3, f"{name} {R}x{N}", function(ours, two), beside(function, two, eager, liger),
                  3 * size, goal="90 % of a copy")  # fmt: skip
        yield Row(3, f"{name} backward {R}x{N}", gradient(ours, two),
                  beside(gradient, two, eager, liger), 5 * size,
                  goal="80 % of a copy")  # fmt: skip


def rope_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields the rotation of queries and of the keys that four of them share."""
    H, T, D = sizes.heads, sizes.tokens, 128 if sizes.tokens > 1000 else 16
    G, item = max(1, H // 4), sizes.dtype.itemsize

    def inputs() -> tuple[Tensor, ...]:
        angle = randn(T, D // 2).float()
        return randn(1, H, T, D), randn(1, G, T, D), angle.cos(), angle.sin()

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

    def eager(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return turn(q, cos, sin), turn(k, cos, sin)

    yield Row(4, f"rope {H}+{G}x{T}x{D}", function(kernels.rope, inputs),
              beside(function, inputs, eager, peers.liger_rope()),
              2 * (H + G) * T * D * item, goal="85 % of a copy")  # fmt: skip
