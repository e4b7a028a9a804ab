"""Cross-entropy of a linear layer whose logits are never in memory as a whole.

loss = log sum exp(logits) - logits[label], logits = softcap * tanh((x @ weight.T) / softcap) or
x @ weight.T. Source: Wijmans et al. 2025, "Cut Your Losses in Large-Vocabulary Language Models".
Forward, each program goes through a span of the vocabulary for a tile of rows and keeps a maximum
and a sum per row. Backward, the gradient by the logits is written for one chunk of the vocabulary
at a time, and two products with it follow: memory is rows x chunk, and nothing is added in an
order that changes. `vocabulary_loss` puts both together, with or without the paper's filter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import exact_tanh
from regraft.backends.triton.kernels.configs import config_for, num_processors, tile_options
from regraft.backends.triton.kernels.operators import operator, wrap_triton
from regraft.backends.triton.kernels.product_tiles import add_product, tile_in_order


@triton.jit
def logit_tile(
    x_ptr, weight_ptr, row, word, M, V, K, x_stride, weight_stride, softcap,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Returns logits [BLOCK_M, BLOCK_N] of rows and words, and tanh(logit / softcap)."""
    k = tl.arange(0, BLOCK_K)
    x_tile = x_ptr + (row % M).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_tile = weight_ptr + (word % V).to(tl.int64)[None, :] * weight_stride + k[:, None]
    logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    logits = add_product(logits, x_tile, w_tile, K, 1, PRECISION, BLOCK_K)
    capped = logits
    if SOFTCAP:
        capped = exact_tanh(logits / softcap)
        logits = capped * softcap
    return logits, capped


@triton.jit
def cross_entropy_kernel(
    x_ptr, weight_ptr, labels_ptr, sums_ptr, chosen_ptr, M, V, K, x_stride, weight_stride, span,
    softcap,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Writes maximum and sum of a span of words for BLOCK_M rows, and the label's logit."""
    # f64 where PyTorch's compiler launches
    softcap = tl.cast(softcap, tl.float32)
    part, split = tile_in_order(tl.cdiv(M, BLOCK_M), tl.cdiv(V, span), GROUP)
    row = part * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    first = split * span
    # i32: comparing i64 would take twice the registers
    label = tl.load(labels_ptr + row, mask=row < M, other=-1).to(tl.int32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(first, min(V, first + span), BLOCK_N):
        word = start + n
        logits, _ = logit_tile(
            x_ptr, weight_ptr, row, word, M, V, K, x_stride, weight_stride, softcap, SOFTCAP,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        is_here = (label >= start) & (label < start + BLOCK_N)
        chosen = tl.sum(tl.where(word[None, :] == label[:, None], logits, 0.0), axis=1)
        tl.store(chosen_ptr + row, chosen, mask=is_here & (row < M))
        logits = tl.where((word < V)[None, :], logits, float("-inf"))
        found = tl.maximum(largest, tl.max(logits, axis=1))
        total = total * tl.exp(largest - found)
        total += tl.sum(tl.exp(logits - found[:, None]), axis=1)
        largest = found
    place = split.to(tl.int64) * M + row
    tl.store(sums_ptr + 2 * place, largest, mask=row < M)
    tl.store(sums_ptr + 2 * place + 1, total, mask=row < M)


@triton.jit
def logit_gradient_kernel(
    x_ptr, weight_ptr, labels_ptr, sums_ptr, dloss_ptr, dlogits_ptr, kept_ptr, M, V, K, x_stride,
    weight_stride, first_word, width, softcap, threshold,
    FILTER: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Writes (softmax - one at the label) * dloss for a tile of rows and words of a chunk."""
    # f64 where PyTorch's compiler launches
    softcap = tl.cast(softcap, tl.float32)
    threshold = tl.cast(threshold, tl.float32)
    tiles = tl.cdiv(width, BLOCK_N)
    part, tile = tile_in_order(tl.cdiv(M, BLOCK_M), tiles, GROUP)
    row = part * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    word = first_word + column
    logits, capped = logit_tile(
        x_ptr, weight_ptr, row, word, M, V, K, x_stride, weight_stride, softcap, SOFTCAP,
        PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    label = tl.load(labels_ptr + row, mask=row < M, other=-1).to(tl.int32)
    largest = tl.load(sums_ptr + 2 * row, mask=row < M, other=0.0)
    log_total = tl.load(sums_ptr + 2 * row + 1, mask=row < M, other=0.0)
    dloss = tl.load(dloss_ptr + row, mask=row < M, other=0.0).to(tl.float32)
    p = tl.exp(logits - largest[:, None] - log_total[:, None])
    d = p - (word[None, :] == label[:, None]).to(tl.float32)
    out = dlogits_ptr + row.to(tl.int64)[:, None] * width + column[None, :]
    mask = (row < M)[:, None] & (column < width)[None, :]
    if FILTER:
        is_kept = tl.max(tl.max(tl.where(mask, tl.abs(d), 0.0), axis=1), axis=0) >= threshold
        tl.store(kept_ptr + part * tiles + tile, is_kept.to(tl.uint8))
        d = tl.where(is_kept, d, 0.0)
    d = d * dloss[:, None]
    if SOFTCAP:
        d = d * (1.0 - capped * capped)
    tl.store(out, d.to(dlogits_ptr.dtype.element_ty), mask=mask)


def reference_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, softcap: float, threshold: float, precision: str
) -> tuple[Tensor, Tensor]:
    """Returns the loss of each row [M], and maximum and logarithm of the sum [M, 2]."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    logits = (x @ weight.T).to(wide)
    if softcap > 0:
        logits = softcap * torch.tanh(logits / softcap)
    largest = logits.amax(-1, keepdim=True)
    log_total = torch.log(torch.exp(logits - largest).sum(-1, keepdim=True))
    is_counted = labels >= 0
    chosen = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    # apart: the sum of maximum and logarithm would have the last digits of the larger one
    loss = torch.where(is_counted, largest[:, 0] - chosen + log_total[:, 0], 0)
    return loss, torch.cat((largest, log_total), -1)


def _allocate_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, softcap: float, threshold: float, precision: str
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    loss = torch.empty(x.shape[:1], dtype=wide, device=x.device)
    return loss, torch.empty((x.shape[0], 2), dtype=wide, device=x.device)


def _launch_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, softcap: float, threshold: float, precision: str
) -> tuple[Tensor, Tensor]:
    M, K = x.shape
    V = weight.shape[0]
    if M == 0:
        loss = torch.empty(0, dtype=torch.float32, device=x.device)
        return loss, torch.empty((0, 2), dtype=torch.float32, device=x.device)
    x, weight, labels = x.contiguous(), weight.contiguous(), labels.contiguous()
    config = config_for("cross_entropy", x, M)
    parts, tiles = triton.cdiv(M, config["m"]), triton.cdiv(V, config["n"])
    # many more programs than run at once: the last ones to run leave little of the GPU idle
    wanted = triton.cdiv(num_processors(x.device) * 16, parts)
    span = triton.cdiv(tiles, max(1, min(tiles, wanted))) * config["n"]
    splits = triton.cdiv(V, span)
    sums = torch.empty((splits, M, 2), dtype=torch.float32, device=x.device)
    # labels that do not count leave it as it is
    chosen = torch.zeros(M, dtype=torch.float32, device=x.device)
    wrap_triton(cross_entropy_kernel)[(parts * splits,)](
        x, weight, labels, sums, chosen, M, V, K, x.stride(0), weight.stride(0), span, softcap,
        SOFTCAP=softcap > 0,
        PRECISION=precision,
        GROUP=config["group"],
        **tile_options(config),
    )  # fmt: skip
    largest = sums[..., 0].amax(0)
    log_total = torch.log((torch.exp(sums[..., 0] - largest) * sums[..., 1]).sum(0))
    loss = torch.where(labels >= 0, largest - chosen + log_total, 0)
    # the reference raises; a kernel does not wait for the labels to reach the host
    loss = torch.where(labels < V, loss, torch.nan)
    return loss, torch.stack((largest, log_total), -1)


cross_entropy_forward = operator(
    "cross_entropy",
    _launch_cross_entropy,
    allocate=_allocate_cross_entropy,
    reference=reference_cross_entropy,
    kernel=cross_entropy_kernel,
)


def reference_logit_gradient(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    sums: Tensor,
    dloss: Tensor,
    first: int,
    width: int,
    softcap: float,
    precision: str,
) -> Tensor:
    """Returns the gradient by the logits of words `first` and after, [M, width], as x."""
    logits = (x @ weight[first : first + width].T).to(sums.dtype)
    capped = torch.tanh(logits / softcap) if softcap > 0 else logits
    logits = softcap * capped if softcap > 0 else logits
    p = torch.exp(logits - sums[:, :1] - sums[:, 1:])
    words = torch.arange(first, first + width, device=x.device)
    d = p - (words == labels[:, None]).to(p.dtype)
    d = d * dloss[:, None]
    return (d * (1 - capped.square()) if softcap > 0 else d).to(x.dtype)


def _allocate_logit_gradient(
    x: Tensor, weight: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, first: int, width: int,
    *others: object,
) -> Tensor:  # fmt: skip
    return torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)


def launch_logit_gradient(
    x: Tensor, weight: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, first: int, width: int,
    softcap: float, threshold: float, precision: str, kept: Tensor | None,
) -> Tensor:  # fmt: skip
    """Returns the gradient by the logits; notes in `kept`, where given, which tiles have one."""
    out = _allocate_logit_gradient(x, weight, labels, sums, dloss, first, width)
    M, K = x.shape
    if out.numel() == 0:
        return out
    x, weight, labels = x.contiguous(), weight.contiguous(), labels.contiguous()
    config = config_for("cross_entropy", x, M)
    grid = (triton.cdiv(M, config["m"]) * triton.cdiv(width, config["n"]),)
    wrap_triton(logit_gradient_kernel)[grid](
        x, weight, labels, sums.contiguous(), dloss.contiguous(), out,
        labels if kept is None else kept, M, weight.shape[0], K, x.stride(0), weight.stride(0),
        first, width, softcap, threshold,
        FILTER=kept is not None,
        SOFTCAP=softcap > 0,
        PRECISION=precision,
        GROUP=config["group"],
        **tile_options(config),
    )  # fmt: skip
    return out


def _launch_logit_gradient(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    sums: Tensor,
    dloss: Tensor,
    first: int,
    width: int,
    softcap: float,
    precision: str,
) -> Tensor:
    return launch_logit_gradient(
        x, weight, labels, sums, dloss, first, width, softcap, 0.0, precision, None
    )


logit_gradient = operator(
    "logit_gradient",
    _launch_logit_gradient,
    allocate=_allocate_logit_gradient,
    reference=reference_logit_gradient,
    kernel=logit_gradient_kernel,
)
