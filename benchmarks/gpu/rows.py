"""What is timed, in the order of the table of goals but for chains; whole models come last.

Chains stand first: their goal is the time of what PyTorch's compiler makes of them, which rows go
without where time runs short.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.attention_rows import attention_rows, decode_rows
from benchmarks.gpu.chain_rows import chain_rows
from benchmarks.gpu.delta_rows import delta_rows
from benchmarks.gpu.expert_rows import expert_rows
from benchmarks.gpu.low_bit_rows import low_bit_rows
from benchmarks.gpu.model_rows import model_rows
from benchmarks.gpu.pointwise_rows import gated_rows, norm_rows, rope_rows, softmax_rows
from benchmarks.gpu.product_rows import loss_rows, product_rows
from benchmarks.gpu.recurrence_rows import hybrid_rows, inverse_rows, recurrence_rows, step_rows
from benchmarks.gpu.row import Row, Sizes

FULL = Sizes(16384, 4096, 8192, 4096, 131072, 32, torch.bfloat16, is_tiny=False)
TINY = Sizes(3, 33, 17, 20, 70, 2, torch.float32, is_tiny=True)
"""For the interpreter: they show that every row runs, and no speed."""


def families(device: str, sizes: Sizes) -> Iterator[Iterator[Row]]:
    """Yields what is timed by families; a row is made when it is asked for."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=sizes.dtype)

    yield chain_rows(randn, sizes, device)
    yield norm_rows(randn, sizes)
    yield gated_rows(randn, sizes)
    yield rope_rows(randn, sizes)
    yield loss_rows(randn, sizes, device)
    yield attention_rows(randn, sizes)
    yield recurrence_rows(randn, sizes)
    yield hybrid_rows(randn, sizes)
    yield step_rows(randn, sizes)
    yield delta_rows(randn, sizes)
    yield decode_rows(randn, sizes)
    yield low_bit_rows(randn, sizes, device)
    yield expert_rows(randn, sizes, device)
    yield product_rows(randn, sizes)
    yield softmax_rows(randn, sizes)
    yield inverse_rows(randn, sizes)
    yield from model_rows(sizes, device)
