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
