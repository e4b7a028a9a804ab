"""The gradient of a cross-entropy without the tiles in which it is almost zero.

A trained model gives nearly every word of the vocabulary a probability that 16 bits do not hold
beside the others. The kernel that writes the gradient by the logits notes which tiles have an
element of at least the threshold; the two products that follow go through those alone, in one
order. Source: Wijmans et al. 2025, section 4.3 (gradient filtering).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.cross_entropy import (
    launch_logit_gradient,
    logit_gradient_kernel,
    reference_logit_gradient,
)
from regraft.backends.triton.kernels.operators import operator, wrap_triton
from regraft.backends.triton.kernels.product_tiles import store_tile


@triton.jit
def filtered_product_kernel(
    d_ptr, other_ptr, kept_ptr, out_ptr, height, depth, K, d_i_stride, d_j_stride, kept_i_stride,
    kept_j_stride, other_stride,
    PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes a tile of d [height, depth] @ other [depth, K] from the tiles of d that are kept."""
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = tl.arange(0, BLOCK_J)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    kept = kept_ptr + tl.program_id(0) * kept_i_stride
    total = tl.zeros([BLOCK_I, BLOCK_K], tl.float32)
    for start in range(0, depth, BLOCK_J):
        if tl.load(kept + start // BLOCK_J * kept_j_stride) != 0:
            inner = (start + j).to(tl.int64)
            d = tl.load(
                d_ptr + i.to(tl.int64)[:, None] * d_i_stride + inner[None, :] * d_j_stride,
                mask=(i < height)[:, None] & (inner < depth)[None, :], other=0.0,
            )  # fmt: skip
            other = tl.load(
                other_ptr + inner[:, None] * other_stride + k[None, :],
                mask=(inner < depth)[:, None] & (k < K)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(d, other, total, input_precision=PRECISION)
    store_tile(out_ptr, total, i, k, height, K)


def tile_of(x: Tensor) -> tuple[int, int]:
    """Returns rows and words of a tile of the gradient."""
    given = x.new_empty(0, dtype=torch.float32) if x.dtype == torch.float64 else x
    config = config_for("cross_entropy", given, x.shape[0])
    return config["m"], config["n"]


def room_for_kept(x: Tensor, width: int) -> Tensor:
    """Returns a byte, not written yet, for every tile of the gradient by `width` words."""
    m, n = tile_of(x)
    return torch.empty((-(-x.shape[0] // m), -(-width // n)), dtype=torch.uint8, device=x.device)


def reference_filtered(
    x: Tensor, weight: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, first: int,
    width: int, softcap: float, threshold: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the gradient by the logits, zero in tiles left out, and which are kept."""
    given = (x, weight, labels, sums, dloss, first, width, softcap, precision)
    logits = (x @ weight[first : first + width].T).to(sums.dtype)
    logits = softcap * torch.tanh(logits / softcap) if softcap > 0 else logits
    words = torch.arange(first, first + width, device=x.device)
    share = torch.exp(logits - sums[:, :1] - sums[:, 1:]) - (words == labels[:, None]).to(
        sums.dtype
    )
    m, n = tile_of(x)
    padded = torch.nn.functional.pad(share.abs(), (0, -width % n, 0, -len(x) % m))
    largest = padded.unflatten(0, (-1, m)).unflatten(2, (-1, n)).amax((1, 3))
    kept = largest >= threshold
    whole = kept.repeat_interleave(m, 0)[: len(x)].repeat_interleave(n, 1)[:, :width]
    return torch.where(whole, reference_logit_gradient(*given), 0), kept.to(torch.uint8)


def _allocate_filtered(
    x: Tensor, weight: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, first: int,
    width: int, softcap: float, threshold: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)
    return out, room_for_kept(x, width)


def _launch_filtered(
    x: Tensor, weight: Tensor, labels: Tensor, sums: Tensor, dloss: Tensor, first: int,
    width: int, softcap: float, threshold: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    kept = room_for_kept(x, width)
    out = launch_logit_gradient(
        x, weight, labels, sums, dloss, first, width, softcap, threshold, precision, kept
    )
    return out, kept


filtered_logit_gradient = operator(
    "filtered_logit_gradient",
    _launch_filtered,
    allocate=_allocate_filtered,
    reference=reference_filtered,
    kernel=logit_gradient_kernel,
)


def reference_filtered_product(
    d: Tensor, other: Tensor, kept: Tensor, turned: bool, precision: str
) -> Tensor:
    """Returns d @ other, or d.T @ other, in f32: tiles that were left out are zeros."""
    product = (d.T if turned else d) @ other
    return product if d.dtype == torch.float64 else product.float()


def _allocate_filtered_product(
    d: Tensor, other: Tensor, kept: Tensor, turned: bool, precision: str
) -> Tensor:
    wide = torch.float64 if d.dtype == torch.float64 else torch.float32
    return torch.empty((d.shape[int(turned)], other.shape[1]), dtype=wide, device=d.device)


def _launch_filtered_product(
    d: Tensor, other: Tensor, kept: Tensor, turned: bool, precision: str
) -> Tensor:
    out = torch.empty((d.shape[int(turned)], other.shape[1]), dtype=torch.float32, device=d.device)
    if out.numel() == 0 or d.numel() == 0:
        return out.zero_()
    config = config_for("cross_entropy", d, d.shape[0])
    rows, columns = config["m"], config["n"]
    if turned:
        d, kept, rows, columns = d.T, kept.T, columns, rows
    other = other.contiguous()
    (height, depth), K = d.shape, other.shape[1]
    grid = (triton.cdiv(height, rows), triton.cdiv(K, config["k"]))
    wrap_triton(filtered_product_kernel)[grid](
        d, other, kept, out, height, depth, K, *d.stride(), *kept.stride(), other.stride(0),
        PRECISION=precision,
        BLOCK_I=rows,
        BLOCK_J=columns,
        BLOCK_K=config["k"],
        num_warps=config["warps"],
        num_stages=config["stages"],
    )  # fmt: skip
    return out


filtered_product = operator(
    "filtered_product",
    _launch_filtered_product,
    allocate=_allocate_filtered_product,
    reference=reference_filtered_product,
    kernel=filtered_product_kernel,
)
