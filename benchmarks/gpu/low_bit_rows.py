"""Rows of the table about weights of few bits, at sizes where reading them is the limit or not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.row import Randn, Row, Sizes, beside, function
from regraft import kernels

GROUP = 128


def low_bit_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields W4A16 beside the product in floats, and W8A8 beside PyTorch's integer product."""
    K, N, group = (64, 32, 32) if sizes.is_tiny else (4 * sizes.hidden, 4 * sizes.hidden, GROUP)

    def packed(bits: int) -> Tensor:
        shape = (K * bits // 8, N)
        return torch.randint(0, 256, shape, device=device, dtype=torch.uint8)

    def scales(groups: int) -> Tensor:
        return torch.rand(groups, N, device=device)

    def floats(x: Tensor, codes: Tensor, scale: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)

    for bits in (4, 8):

        def ours(
            x: Tensor, codes: Tensor, scale: Tensor, w: Tensor, bits: int = bits
        ) -> Tensor:  # fmt: skip
            zero = 1 << (bits - 1)
            return kernels.low_bit_linear(x, codes, scale, bits=bits, group=group, zero=zero)

        for M in (1, 16, 128):
            inputs = lambda M=M, bits=bits: (  # noqa: E731
                randn(M, K), packed(bits), scales(K // group), randn(N, K),
            )  # fmt: skip
            size = K * N * bits // 8 + 4 * K // group * N
            yield Row(
                15, f"low_bit_linear {bits} bits {M}x{N}x{K}", function(ours, inputs),
                {"eager in bf16": function(floats, inputs)}, size,
                goal=("2.6x bf16" if bits == 4 else "") if M < 128 else "0.9x bf16",
            )  # fmt: skip
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
        16, f"low_bit_integer_linear 8 bits {M}x{N}x{K}", function(eight, whole),
        beside(function, whole, library, label="cuBLASLt"), flops=2 * M * N * K,
        goal="0.85 of cuBLASLt",
    )  # fmt: skip
