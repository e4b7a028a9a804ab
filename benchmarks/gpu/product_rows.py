"""Rows of the table about products: epilogues, widths that no 64 divides, losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import peers
from benchmarks.gpu.row import (
    Call,
    Function,
    Inputs,
    Maker,
    Randn,
    Row,
    Sizes,
    beside,
    function,
    gradient,
)
from regraft import kernels

ODD = 37
"""Channels that pruning took from a width."""


def product_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields a product with its activation, at an aligned width, an odd one, and that padded."""
    M, K = sizes.tokens, sizes.hidden

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return kernels.linear(x, w, b, "gelu_tanh")

    def eager(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.gelu(F.linear(x, w, b), approximate="tanh")

    odd = 4 * K - (3 if sizes.is_tiny else ODD)
    padded = -(-odd // 64) * 64
    for label, N in (("aligned", 4 * K), ("odd", odd), ("padded", padded)):
        inputs = lambda N=N: (randn(M, K), randn(N, K), randn(N))  # noqa: E731
        yield Row(18, f"linear gelu, {label} {M}x{N}x{K}", function(ours, inputs),
                  beside(function, inputs, eager), flops=2 * M * K * N,
                  goal="0.9 of the aligned rate")  # fmt: skip


def _both_ways(call: Function, inputs: Inputs) -> Maker:
    """Returns a maker of calls of a loss and its gradient together."""

    def make() -> Call:
        (x,) = inputs()
        x.requires_grad_()
        return lambda: torch.autograd.grad(call(x), x)

    return make


def loss_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields the cross-entropy of logits, and that of hidden states without logits."""
    M, K, V = sizes.tokens, sizes.hidden, sizes.words
    labels = torch.randint(V, (M,), device=device)

    def of_logits(x: Tensor) -> Tensor:
        return F.cross_entropy(x.float(), labels)

    def in_place(x: Tensor) -> Tensor:
        return kernels.cross_entropy(x, labels, in_place=True)

    def apart(x: Tensor) -> Tensor:
        return kernels.cross_entropy(x, labels)

    # again and again over the logits: they become gradients, which are logits like others
    logits = lambda: (randn(M, V),)  # noqa: E731
    others = beside(_both_ways, logits, of_logits, peers.liger_cross_entropy(labels))
    # read, and written once where the second reading comes from the second-level cache
    size = M * V * sizes.dtype.itemsize
    yield Row(5, f"cross_entropy of logits in place, with gradient {M}x{V}",
              _both_ways(in_place, logits), others, 2 * size,
              goal="70 % of two passes")  # fmt: skip
    yield Row(5, f"cross_entropy of logits, with gradient {M}x{V}", _both_ways(apart, logits),
              {}, 3 * size)  # fmt: skip

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(x, w, labels)

    def filtered(x: Tensor, w: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(x, w, labels, filter_below=2**-12)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, w).float(), labels)

    head = lambda: (randn(M, K), randn(V, K) * K**-0.5)  # noqa: E731
    liger = peers.liger_linear_cross_entropy(labels)
    yield Row(6, f"linear_cross_entropy {M}x{V}x{K}", function(ours, head),
              beside(function, head, eager, liger), flops=2 * M * V * K,
              goal="0.75 of a large product")  # fmt: skip
    for label, call in (("", ours), (", filtered", filtered)):
        yield Row(6, f"linear_cross_entropy backward{label} {M}x{V}x{K}", gradient(call, head),
                  {} if label else beside(gradient, head, eager), flops=6 * M * V * K)  # fmt: skip
