"""Calls that are timed to tune a kernel: of a size that its table buckets by, on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regraft import kernels

Call = Callable[[], object]
Made = Callable[[int, torch.dtype], Call]

ELEMENTS = 1 << 25
"""Of the tensors of kernels that memory limits: more than the second-level cache holds."""
WIDTH, TOKENS, HEADS, WORDS, EXPERTS = 4096, 4096, 16, 32768, 8

WIDEST: Mapping[str, int] = dict.fromkeys(
    (
        "attention", "attention_backward", "attention_masked", "attention_masked_backward",
        "entmax", "decode", "decode_masked", "linear_attention", "gated_delta",
    ),
    256,
)  # fmt: skip
"""Kernels that are bucketed by the size of a head -> the largest that models have."""


def _randn(dtype: torch.dtype, *shape: int) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.randn(shape, dtype=dtype, device=device)


def _gradient(result: Tensor, *sources: Tensor) -> Call:
    given = torch.randn_like(result)
    return lambda: torch.autograd.grad(result, sources, given, retain_graph=True)


def _norm(size: int, dtype: torch.dtype) -> Call:
    x, weight = _randn(dtype, ELEMENTS // size, size), _randn(dtype, size)
    return lambda: kernels.rms_norm(x, weight)


def _norm_backward(size: int, dtype: torch.dtype) -> Call:
    x = _randn(dtype, ELEMENTS // size, size).requires_grad_()
    weight = _randn(dtype, size).requires_grad_()
    return _gradient(kernels.rms_norm(x, weight), x, weight)


def _soft(size: int, dtype: torch.dtype) -> Call:
    x = _randn(dtype, ELEMENTS // size, size)
    return lambda: kernels.softmax(x)


def _gated(size: int, dtype: torch.dtype) -> Call:
    gate, up = (_randn(dtype, ELEMENTS // size, 2 * size)[:, :size] for _ in range(2))
    return lambda: kernels.swiglu(gate, up)


def _turned(size: int, dtype: torch.dtype) -> Call:
    q, table = _randn(dtype, 4, HEADS, TOKENS, 128), _randn(dtype, TOKENS, 64)
    return lambda: kernels.rotary(q, table, table)


def _product(size: int, dtype: torch.dtype) -> Call:
    x, weight = _randn(dtype, size, WIDTH), _randn(dtype, WIDTH, WIDTH)
    return lambda: kernels.linear(x, weight, None, "silu")


def _heads(
    size: int, dtype: torch.dtype, tokens: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = TOKENS if tokens is None else tokens
    q, k, v = (_randn(dtype, 1, HEADS, tokens, size) for _ in range(3))
    return q, k, v


def _attention(size: int, dtype: torch.dtype) -> Call:
    q, k, v = _heads(size, dtype)
    return lambda: kernels.attention(q, k, v, window=(-1, 0))


def _attention_backward(size: int, dtype: torch.dtype) -> Call:
    q, k, v = (x.requires_grad_() for x in _heads(size, dtype))
    return _gradient(kernels.attention(q, k, v, window=(-1, 0)), q, k, v)


def _masked(size: int, dtype: torch.dtype) -> Call:
    q, k, v = _heads(size, dtype)
    return lambda: kernels.attention(q, k, v, _padding(q, k), window=(-1, 0))


def _masked_backward(size: int, dtype: torch.dtype) -> Call:
    q, k, v = (x.requires_grad_() for x in _heads(size, dtype))
    return _gradient(kernels.attention(q, k, v, _padding(q, k), window=(-1, 0)), q, k, v)


def _padding(q: Tensor, k: Tensor) -> Tensor:
    """A mask of every pair, as models with padding make it."""
    shape = (q.shape[0], 1, q.shape[2], k.shape[2])
    return torch.ones(shape, dtype=torch.bool, device=q.device)


def _entmax(size: int, dtype: torch.dtype) -> Call:
    """Attention and its gradient: tiles without weight are those of both."""
    q, k, v = (x.requires_grad_() for x in _heads(size, dtype))
    given = torch.randn_like(q)

    def call() -> object:
        made = kernels.entmax_attention(q, k, v, window=(-1, 0))
        return torch.autograd.grad(made, (q, k, v), given)

    return call


def _decode(size: int, dtype: torch.dtype) -> Call:
    q, (_, k, v) = _randn(dtype, 8, HEADS, size), _heads(size, dtype)
    k, v = (x.expand(8, *x.shape[1:]).contiguous() for x in (k, v))
    return lambda: kernels.attention_decode(q, k, v)


def _decode_masked(size: int, dtype: torch.dtype) -> Call:
    """A step of a padded batch."""
    q, (_, k, v) = _randn(dtype, 8, HEADS, size), _heads(size, dtype)
    k, v = (x.expand(8, *x.shape[1:]).contiguous() for x in (k, v))
    mask = torch.ones(8, 1, 1, k.shape[2], dtype=torch.bool, device=q.device)
    return lambda: kernels.attention_decode(q, k, v, mask, unified=(0.0, -6.0, 6.0))


def _recurrence(size: int, dtype: torch.dtype) -> Call:
    q, k, v = _heads(min(size, 256), dtype)
    return lambda: kernels.linear_attention(q, k, v)


def _gated_delta(size: int, dtype: torch.dtype) -> Call:
    """A delta rule and its gradient, and factors per channel."""
    q, k, v = _heads(min(size, 256), dtype)
    k = torch.nn.functional.normalize(k.float(), dim=-1).to(dtype)
    gates, beta = -q.abs(), v[..., 0].sigmoid()
    of_heads = gates[..., 0].contiguous()
    v = v.requires_grad_()
    given = torch.randn_like(q)

    def call() -> object:
        made = kernels.gated_delta_attention(q, k, v, of_heads, beta)[0]
        gated = kernels.gated_delta_attention(q, k, v, gates)[0]
        return torch.autograd.grad((made, gated), v, (given, given))

    return call


def _loss(size: int, dtype: torch.dtype) -> Call:
    x, weight = _randn(dtype, size, WIDTH), _randn(dtype, WORDS, WIDTH)
    labels = torch.zeros(size, dtype=torch.int64, device=x.device)
    return lambda: kernels.linear_cross_entropy(x, weight, labels)


def _logit_loss(size: int, dtype: torch.dtype) -> Call:
    x = _randn(dtype, max(1, ELEMENTS // size), size)
    labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return lambda: kernels.cross_entropy(x, labels)


def _inverse(size: int, dtype: torch.dtype) -> Call:
    a = _randn(dtype, max(1, ELEMENTS // size**2 // 8), size, size).requires_grad_()
    start = a.detach() / size
    return _gradient(kernels.newton_inverse(a, start), a)


def _experts(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `size` rows for each expert, their matrices and their counts."""
    x, weight = _randn(dtype, EXPERTS * size, WIDTH), _randn(dtype, EXPERTS, WIDTH, WIDTH)
    return x, weight, torch.full((EXPERTS,), size, device=x.device)


def _grouped(size: int, dtype: torch.dtype) -> Call:
    x, weight, counts = _experts(size, dtype)
    return lambda: kernels.grouped_linear(x, weight, counts)


def _grouped_gradient(size: int, dtype: torch.dtype) -> Call:
    x, weight, counts = _experts(size, dtype)
    return _gradient(kernels.grouped_linear(x, weight.requires_grad_(), counts), weight)


def _hidden(size: int, dtype: torch.dtype) -> Call:
    x, weight, counts = _experts(size, dtype)
    return lambda: kernels.grouped_hidden(x, counts, weight, weight, activation="silu")


def _coded(size: int, dtype: torch.dtype) -> tuple[Tensor, kernels.CodedMatrices, Tensor]:
    """Returns `size` rows for each expert, their matrices in 4 bits and their counts."""
    x, group = _randn(dtype, EXPERTS * size, WIDTH), min(128, WIDTH)
    codes = torch.zeros(EXPERTS, WIDTH // 2, WIDTH, dtype=torch.uint8, device=x.device)
    scale = torch.ones(EXPERTS, WIDTH // group, WIDTH, device=x.device)
    coded = kernels.CodedMatrices(codes, scale, bits=4, group=group, zero=8)
    return x, coded, torch.full((EXPERTS,), size, device=x.device)


def _grouped_low_bit(size: int, dtype: torch.dtype) -> Call:
    x, coded, counts = _coded(size, dtype)
    return lambda: kernels.grouped_low_bit_linear(x, coded, counts)


def _grouped_low_bit_gradient(size: int, dtype: torch.dtype) -> Call:
    x, coded, counts = _coded(size, dtype)
    return _gradient(kernels.grouped_low_bit_linear(x.requires_grad_(), coded, counts), x)


def _grouped_low_bit_hidden(size: int, dtype: torch.dtype) -> Call:
    x, coded, counts = _coded(size, dtype)
    return lambda: kernels.grouped_low_bit_hidden(x, counts, coded, coded)


def _low_bit(size: int, dtype: torch.dtype) -> Call:
    x, group = _randn(dtype, size, WIDTH), min(128, WIDTH)
    codes = torch.zeros(WIDTH // 2, WIDTH, dtype=torch.uint8, device=x.device)
    scale = torch.ones(WIDTH // group, WIDTH, device=x.device)
    return lambda: kernels.low_bit_linear(x, codes, scale, bits=4, group=group, zero=8)


def _low_bit_integer(size: int, dtype: torch.dtype) -> Call:
    # the table goes by the dtype of the scales
    scale = _randn(torch.float32, 1, WIDTH)
    x, codes = (
        torch.zeros(rows, WIDTH, dtype=torch.int8, device=scale.device) for rows in (size, WIDTH)
    )
    x_scale = scale.new_ones(size)
    return lambda: kernels.low_bit_integer_linear(x, x_scale, codes, scale)


CALLS: Mapping[str, Made] = {
    "row_norm": _norm,
    "row_norm_backward": _norm_backward,
    "softmax": _soft,
    "gated": _gated,
    "rope": _turned,
    "linear": _product,
    "attention": _attention,
    "attention_backward": _attention_backward,
    "attention_masked": _masked,
    "attention_masked_backward": _masked_backward,
    "entmax": _entmax,
    "decode": _decode,
    "decode_masked": _decode_masked,
    "linear_attention": _recurrence,
    "gated_delta": _gated_delta,
    "cross_entropy": _loss,
    "logit_loss": _logit_loss,
    "newton": _inverse,
    "grouped": _grouped,
    "grouped_gradient": _grouped_gradient,
    "grouped_hidden": _hidden,
    "grouped_low_bit": _grouped_low_bit,
    "grouped_low_bit_gradient": _grouped_low_bit_gradient,
    "grouped_low_bit_hidden": _grouped_low_bit_hidden,
    "low_bit": _low_bit,
    "low_bit_integer": _low_bit_integer,
}
"""Kernel of the table -> a call at a size. What is not here keeps its defaults."""
