"""Rows of the table about mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.row import Randn, Row, Sizes, beside, function, gradient
from regraft import kernels
from regraft.backends.torch.library import experts as library

TOP_K = 2


def expert_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields a mixture of gated experts, of many tokens, few and one, and its gradient."""
    D, item = sizes.hidden, sizes.dtype.itemsize
    E, width = (3, 24) if sizes.is_tiny else (32, D // 2)
    many, few = (sizes.tokens, 5) if sizes.is_tiny else (2 * sizes.tokens, 256)
    for T in (many, few, 1):
        chosen = torch.rand(T, E, device=device).topk(TOP_K).indices
        share = torch.full((T, TOP_K), 1 / TOP_K, device=device, dtype=sizes.dtype)

        def ours(
            x: Tensor, up: Tensor, gate: Tensor, down: Tensor,
            chosen: Tensor = chosen, share: Tensor = share,
        ) -> Tensor:  # fmt: skip
            return kernels.experts(x, chosen, share, up, down, "silu", gate)

        def grouped(
            x: Tensor, up: Tensor, gate: Tensor, down: Tensor,
            chosen: Tensor = chosen, share: Tensor = share,
        ) -> Tensor:  # fmt: skip
            silu = library.expert_silu
            return library.apply_experts(x, chosen, share, up, down, silu, gate)

        def inputs(T: int = T) -> tuple[Tensor, ...]:
            up, gate = (randn(E, width, D) * D**-0.5 for _ in range(2))
            return randn(T, D), up, gate, randn(E, D, width) * width**-0.5

        flops = 3 * 2 * T * TOP_K * D * width
        read = min(E, T * TOP_K) * 3 * D * width * item  # bytes of the matrices
        label = f"{T}x{D}, {TOP_K} of {E} experts of {width}"
        is_read = many > T
        yield Row(
            17, f"experts {label}", function(ours, inputs), beside(function, inputs, grouped),
            num_bytes=read if is_read else 0, flops=0 if is_read else flops,
            goal="75 % of reading the weights" if is_read else "450 TFLOP/s",
        )  # fmt: skip
        if not is_read:
            yield Row(
                17, f"experts backward {label}", gradient(ours, inputs),
                {"eager": gradient(grouped, inputs)}, flops=2 * flops,
            )  # fmt: skip
    yield from _coded_rows(randn, sizes, device, E)


def _coded_rows(randn: Randn, sizes: Sizes, device: str, E: int) -> Iterator[Row]:
    """Yields the same of matrices in 4 bits, unpacked in the kernels, beside those in floats."""
    D, group = (32, 16) if sizes.is_tiny else (sizes.hidden, 128)
    width = 32 if sizes.is_tiny else D // 2

    def codes_of(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        shape = (E, inputs // 2, outputs)
        codes = torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
        return codes, torch.rand(E, inputs // group, outputs, device=device) / inputs

    for T in (5, 1) if sizes.is_tiny else (sizes.tokens, 256, 1):
        chosen = torch.rand(T, E, device=device).topk(TOP_K).indices
        share = torch.full((T, TOP_K), 1 / TOP_K, device=device, dtype=sizes.dtype)

        def ours(
            x: Tensor, wide: Tensor, down: Tensor, *codes: Tensor,
            chosen: Tensor = chosen, share: Tensor = share,
        ) -> Tensor:  # fmt: skip
            first, second, last = (
                kernels.CodedMatrices(codes[idx], codes[idx + 1], bits=4, group=group, zero=8)
                for idx in (0, 2, 4)
            )
            return kernels.low_bit_experts(x, chosen, share, first, last, "silu", second)

        def floats(
            x: Tensor, wide: Tensor, down: Tensor, *codes: Tensor,
            chosen: Tensor = chosen, share: Tensor = share,
        ) -> Tensor:  # fmt: skip
            return kernels.experts(x, chosen, share, wide, down, "silu", wide)

        def inputs(T: int = T) -> tuple[Tensor, ...]:
            codes = (*codes_of(D, width), *codes_of(D, width), *codes_of(width, D))
            return randn(T, D), randn(E, width, D), randn(E, D, width), *codes

        read = min(E, T * TOP_K) * 3 * D * width // 2
        is_read = sizes.tokens > T or sizes.is_tiny
        yield Row(
            17, f"experts in 4 bits {T}x{D}, {TOP_K} of {E} experts of {width}",
            function(ours, inputs), {"ours in floats": function(floats, inputs)},
            num_bytes=read if is_read else 0,
            flops=0 if is_read else 3 * 2 * T * TOP_K * D * width,
            goal="2.6x bf16" if is_read else "0.9x bf16",
        )  # fmt: skip
