"""Rows about delta rules and factors per channel: chunks, gradients, tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu import peers
from benchmarks.gpu.row import Randn, Row, Sizes, beside, function, gradient
from regraft import kernels
from regraft.backends.torch.library import recurrence


def delta_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields a gated delta rule, with factors per head and per channel, and one token of it.

    They are asked for what linear attention with a factor per head is asked for.
    """
    B, H, T, D = (1, 2, 17, 16) if sizes.is_tiny else (1, 32, 8192, 128)
    size = 4 * B * H * T * D * sizes.dtype.itemsize

    def inputs(tokens: int = T) -> tuple[Tensor, ...]:
        q, k, v = (randn(B, H, tokens, D) for _ in range(3))
        k = torch.nn.functional.normalize(k.float(), dim=-1).to(k.dtype)
        gates = -randn(B, H, tokens, D).abs() * 0.1
        return q * D**-0.5, k, v, gates, randn(B, H, tokens).sigmoid()

    def delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
        return kernels.gated_delta_attention(q, k, v, g[..., 0], b)[0]

    def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
        return kernels.gated_delta_attention(q, k, v, g)[0]

    def eager(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
        found = recurrence.linear_attention(q, k, v, None, g[..., :1], b.unsqueeze(3), 1.0, 1)
        return found[0]

    label = f"{B}x{H}x{T}x{D}"
    for name, ours, fla in (
        ("gated delta rule", delta, peers.fla_gated_delta()), ("gates per channel", gated,
         peers.fla_gated()),
    ):  # fmt: skip
        others = beside(function, inputs, None, fla)
        if ours is delta:
            others = {"eager": function(eager, inputs), **others}
        yield Row(8, f"{name} {label}", function(ours, inputs), others, size, goal="1.1x fla")
        yield Row(10, f"{name} backward {label}", gradient(ours, inputs),
                  beside(gradient, inputs, None, fla), size * 10 // 4, goal="1.1x fla")  # fmt: skip
    count = 2 if sizes.is_tiny else 64

    def step_inputs() -> tuple[Tensor, ...]:
        many = (x.expand(count, *x.shape[1:]).contiguous() for x in inputs(1))
        return (*many, randn(count, H, D, D).float())

    def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, state: Tensor) -> object:
        return kernels.gated_delta_attention(q, k, v, g[..., 0], b, state=state)

    yield Row(12, f"gated delta rule of a token {count}x{H}x{D}", function(step, step_inputs), {},
              2 * count * H * D * D * 4, goal="80 % of a copy")  # fmt: skip
