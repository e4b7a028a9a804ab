"""What is timed: each kernel with its peers, the bytes that it moves, the products it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.expert_rows import expert_rows
from benchmarks.gpu.low_bit_rows import low_bit_rows
from benchmarks.gpu.row import Randn, Row, Sizes, function, gradient
from regraft import kernels
from regraft.backends.torch.library import recurrence

FULL = Sizes(16384, 4096, 8192, 4096, 131072, 32, torch.bfloat16)
TINY = Sizes(3, 33, 17, 20, 70, 2, torch.float32)
"""For the interpreter: they show that every row runs, and no speed."""


def rows(device: str, sizes: Sizes) -> Iterator[Row]:
    """Yields what is timed, in the order of the table."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=sizes.dtype)

    item = sizes.dtype.itemsize
    R, N = sizes.rows, sizes.width
    yield from _norms(randn, R, N, item)
    yield from _pointwise(randn, R, N, item)
    yield from _attention(randn, sizes)
    yield from _linear_attention(randn, sizes)
    yield from _products(randn, sizes, device)
    yield from expert_rows(randn, sizes, device)
    yield from low_bit_rows(randn, sizes, device)


def _compiled(call: Callable[..., object]) -> Callable[..., object]:
    made: Callable[..., object] = torch.compile(call)
    return made


def _norms(randn: Randn, R: int, N: int, item: int) -> Iterator[Row]:
    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (N,), w, b)

    def rms(x: Tensor, w: Tensor) -> Tensor:
        return F.rms_norm(x, (N,), w, 1e-6)

    def added(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return rms(total, w), total

    one = 2 * R * N * item
    for name, ours, peer, inputs in (
        ("layer_norm", kernels.layer_norm, layer, lambda: (randn(R, N), randn(N), randn(N))),
        ("rms_norm", kernels.rms_norm, rms, lambda: (randn(R, N), randn(N))),
    ):
        peers = {"eager": function(peer, inputs), "inductor": function(_compiled(peer), inputs)}
        yield Row(f"{name} {R}x{N}", function(ours, inputs), peers, one)
        peers = {"eager": gradient(peer, inputs)}
        yield Row(f"{name} backward {R}x{N}", gradient(ours, inputs), peers, one * 3 // 2)
    three = lambda: (randn(R, N), randn(R, N), randn(N))  # noqa: E731
    yield Row(
        f"add_rms_norm {R}x{N}", function(kernels.add_rms_norm, three),
        {"eager": function(added, three), "inductor": function(_compiled(added), three)},
        2 * one,
    )  # fmt: skip


def _pointwise(randn: Randn, R: int, N: int, item: int) -> Iterator[Row]:
    def soft(x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    one = lambda: (randn(R, N),)  # noqa: E731
    two = lambda: (randn(R, N), randn(R, N))  # noqa: E731
    size = R * N * item
    for label, two_pass in (("softmax", False), ("softmax two-pass", True)):
        yield Row(
            f"{label} {R}x{N}",
            function(lambda x, form=two_pass: kernels.softmax(x, form), one),
            {"eager": function(soft, one)}, 2 * size,
        )  # fmt: skip
    yield Row(
        f"swiglu {R}x{N}", function(kernels.swiglu, two),
        {"eager": function(swiglu, two), "inductor": function(_compiled(swiglu), two)},
        3 * size,
    )  # fmt: skip
    yield Row(
        f"swiglu backward {R}x{N}", gradient(kernels.swiglu, two),
        {"eager": gradient(swiglu, two)}, 5 * size,
    )  # fmt: skip


def _attention(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    H, T, D = sizes.heads, sizes.tokens, 128 if sizes.tokens > 1000 else 16
    item = sizes.dtype.itemsize

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.attention(q, k, v, window=(-1, 0))

    def clipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.attention(q, k, v, window=(-1, 0), clip=(-0.03, 1.03))

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    inputs = lambda: tuple(randn(1, H, T, D) for _ in range(3))  # noqa: E731
    flops = 2 * 2 * H * T * T * D // 2
    label = f"{H}x{T}x{D}"
    yield Row(f"attention causal {label}", function(ours, inputs),
              {"sdpa": function(sdpa, inputs)}, flops=flops)  # fmt: skip
    yield Row(f"attention causal backward {label}", gradient(ours, inputs),
              {"sdpa": gradient(sdpa, inputs)}, flops=flops * 5 // 2)  # fmt: skip
    yield Row(f"attention clipped {label}", function(clipped, inputs),
              {"sdpa": function(sdpa, inputs)}, flops=flops * 3 // 2)  # fmt: skip
    for name, scale in (("entmax", 0.02), ("entmax sparse", 2.0)):  # all tiles have weights, few

        def sparse(q: Tensor, k: Tensor, v: Tensor, scale: float = scale) -> Tensor:
            return kernels.entmax_attention(q, k, v, window=(-1, 0), scale=scale)

        yield Row(f"{name} causal {label}", function(sparse, inputs),
                  {"sdpa": function(sdpa, inputs)}, flops=flops)  # fmt: skip
    B, G = 4, max(1, H // 4)
    cache = lambda: (randn(B, H, D), randn(B, G, T, D), randn(B, G, T, D))  # noqa: E731

    def decoded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, enable_gqa=True)

    for name, unified in (("decode", None), ("decode unified", (0.0, -8.0, 10.0))):
        yield Row(
            f"{name} {B}x{H}/{G}x{T}x{D}",
            function(partial(kernels.attention_decode, unified=unified), cache),
            {"sdpa": function(decoded, cache)}, 2 * B * G * T * D * item,
        )  # fmt: skip


def _linear_attention(randn: Randn, sizes: Sizes) -> Iterator[Row]:
    H, T, D = sizes.heads, sizes.tokens, 128 if sizes.tokens > 1000 else 16

    def ours(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        return kernels.linear_attention(q, k, v, decay)[0]

    def eager(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        return recurrence.linear_attention(q, k, v, None, decay.unsqueeze(3), None, 1.0, 1)[0]

    inputs = lambda: (  # noqa: E731
        *(randn(1, H, T, D) * D**-0.5 for _ in range(3)), -randn(1, H, T).abs() * 0.1,
    )  # fmt: skip
    flops = 2 * 2 * H * T * D * D  # of the state, written and read
    for name, timed, factor in (("", function, 1), (" backward", gradient, 3)):
        yield Row(f"linear_attention{name} {H}x{T}x{D}", timed(ours, inputs),
                  {"eager": timed(eager, inputs)}, flops=factor * flops)  # fmt: skip


def _products(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    M, K, V = sizes.tokens, sizes.hidden, sizes.words

    def fused(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return kernels.linear(x, w, b, "gelu_tanh")

    def apart(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.gelu(F.linear(x, w, b), approximate="tanh")

    inputs = lambda: (randn(M, K), randn(4 * K, K), randn(4 * K))  # noqa: E731
    yield Row(
        f"linear gelu {M}x{4 * K}x{K}", function(fused, inputs),
        {"eager": function(apart, inputs)}, flops=2 * M * K * 4 * K,
    )  # fmt: skip
    labels = torch.randint(V, (M,), device=device)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(x, w, labels)

    def eager_loss(x: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, w).float(), labels)

    head = lambda: (randn(M, K), randn(V, K) * K**-0.5)  # noqa: E731
    yield Row(f"linear_cross_entropy {M}x{V}x{K}", function(loss, head),
              {"eager": function(eager_loss, head)}, flops=2 * M * V * K)  # fmt: skip
    yield Row(f"linear_cross_entropy backward {M}x{V}x{K}", gradient(loss, head),
              {"eager": gradient(eager_loss, head)}, flops=6 * M * V * K)  # fmt: skip
