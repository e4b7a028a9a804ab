"""Rows of the table about attention: dense, with modified scores, sparse, and to a cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import peers
from benchmarks.gpu.row import Randn, Row, Sizes, beside, function, gradient
from regraft import kernels


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernels.attention(q, k, v, window=(-1, 0))


def _clipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernels.attention(q, k, v, window=(-1, 0), clip=(-0.03, 1.03))


def _capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernels.attention(q, k, v, window=(-1, 0), softcap=30.0)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields flash attention and its gradients, score modifiers, and alpha-entmax."""
    H, T = sizes.heads, sizes.tokens
    flash = peers.flash_attention()
    for D in (8, 16) if sizes.is_tiny else (64, 128):
        inputs = lambda D=D: tuple(randn(1, H, T, D) for _ in range(3))  # noqa: E731
        flops, label = 2 * 2 * H * T * T * D // 2, f"{H}x{T}x{D}"
        others = {"sdpa": function(_sdpa, inputs), **beside(function, inputs, None, flash)}
        yield Row(7, f"attention causal {label}", function(_causal, inputs), others,
                  flops=flops, goal="0.72 of FlashAttention 3, 450 TFLOP/s")  # fmt: skip
        backward = {"sdpa": gradient(_sdpa, inputs), **beside(gradient, inputs, None, flash)}
        yield Row(7, f"attention causal backward {label}", gradient(_causal, inputs), backward,
                  flops=flops * 5 // 2)  # fmt: skip
        plain = {"ours without": function(_causal, inputs), "sdpa": function(_sdpa, inputs)}
        yield Row(7, f"attention capped {label}", function(_capped, inputs), plain, flops=flops)
        yield Row(14, f"attention clipped {label}", function(_clipped, inputs), plain,
                  flops=flops * 3 // 2, goal="2.2x the time of dense")  # fmt: skip
        for name, scale in (("entmax", 0.02), ("entmax sparse", 2.0)):  # all tiles count, few do

            def sparse(q: Tensor, k: Tensor, v: Tensor, scale: float = scale) -> Tensor:
                return kernels.entmax_attention(q, k, v, window=(-1, 0), scale=scale)

            yield Row(14, f"{name} causal {label}", function(sparse, inputs), plain, flops=flops,
                      goal="2.2x the time of dense")  # fmt: skip


def decode_rows(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    """Yields one query per sequence to a long cache."""
    B, H, T = 4, sizes.heads, sizes.tokens
    G, D = max(1, H // 4), 16 if sizes.is_tiny else 128
    cache = lambda: (randn(B, H, D), randn(B, G, T, D), randn(B, G, T, D))  # noqa: E731

    def library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, enable_gqa=True)

    for name, unified in (("decode", None), ("decode unified", (0.0, -8.0, 10.0))):
        yield Row(13, f"{name} {B}x{H}/{G}x{T}x{D}",
                  function(partial(kernels.attention_decode, unified=unified), cache),
                  beside(function, cache, library, label="sdpa"),
                  2 * B * G * T * D * sizes.dtype.itemsize, goal="85 % of a copy")  # fmt: skip

    def padded() -> tuple[Tensor, ...]:
        q, k, v = randn(B, H, D), randn(B, G, T, D), randn(B, G, T, D)
        place = torch.arange(T, device=q.device)
        begins = torch.arange(B, device=q.device) * (T // 64)
        return q, k, v, (place >= begins[:, None])[:, None, None]

    def hidden(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, mask, enable_gqa=True)

    yield Row(
        13, f"decode unified, padded {B}x{H}/{G}x{T}x{D}",
        function(partial(kernels.attention_decode, unified=(0.0, -8.0, 10.0)), padded),
        beside(function, padded, hidden, label="sdpa"),
        2 * B * G * T * D * sizes.dtype.itemsize, goal="85 % of a copy",
    )  # fmt: skip
