"""Rows of the table about weights of few bits, at sizes where reading them is the limit or not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.row import Randn, Row, Sizes, function
from regraft import kernels

GROUP = 128


def low_bit_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields W4A16 beside the product in floats, and W8A8 beside PyTorch's integer product."""
    K = 4 * sizes.hidden if sizes.hidden > 1000 else 64
    N = K if K > 1000 else 32
    group = GROUP if K > 1000 else 32

    def packed(bits: int) -> Tensor:
        shape = (K * bits // 8, N)
        return torch.randint(0, 256, shape, device=device, dtype=torch.uint8)

    def scales(groups: int) -> Tensor:
        return torch.rand(groups, N, device=device)

    def four(x: Tensor, codes: Tensor, scale: Tensor, w: Tensor) -> Tensor:
        return kernels.low_bit_linear(x, codes, scale, bits=4, group=group, zero=8)

    def floats(x: Tensor, codes: Tensor, scale: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)

    for M in (1, 16, 128):
        inputs = lambda M=M: (randn(M, K), packed(4), scales(K // group), randn(N, K))  # noqa: E731
        peers = {"eager": function(floats, inputs)}
        size = K * N // 2 + 4 * K // group * N
        yield Row(f"low_bit_linear 4 bits {M}x{N}x{K}", function(four, inputs), peers, size)
    M = sizes.tokens

    def whole() -> tuple[Tensor, ...]:
        x = torch.randint(-128, 128, (M, K), device=device, dtype=torch.int8)
        w = torch.randint(-127, 128, (K, N), device=device, dtype=torch.int8)
        return x, w, scales(1), torch.rand(M, device=device)

    def eight(x: Tensor, w: Tensor, scale: Tensor, x_scale: Tensor) -> Tensor:
        return kernels.low_bit_integer_linear(x, x_scale, w, scale)

    def library(x: Tensor, w: Tensor, scale: Tensor, x_scale: Tensor) -> Tensor:
        return torch._int_mm(x, w).float() * scale * x_scale.unsqueeze(1)

    yield Row(
        f"low_bit_integer_linear 8 bits {M}x{N}x{K}", function(eight, whole),
        {"eager": function(library, whole)}, flops=2 * M * N * K,
    )  # fmt: skip
