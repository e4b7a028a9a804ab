"""Rows of the table about generated kernels: chains, alone and around products, and of images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regraft
from benchmarks.gpu.row import INDUCTOR, Call, Inputs, Randn, Row, Sizes, compiled, function
from regraft.backends.triton.package import load_package, save_package

CHAINS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gelu of a sum": lambda x, y, w: F.gelu(x + y),
    "relu2": lambda x, y, w: F.relu(x).square() * w,
    "mish": lambda x, y, w: F.mish(x + w) * y,
    "hardswish": lambda x, y, w: F.hardswish(x * w) + y,
    "gate": lambda x, y, w: torch.sigmoid(x) * y + x,
    "tanh gate": lambda x, y, w: torch.tanh(x) * torch.sigmoid(y) * w,
    "exponential": lambda x, y, w: torch.exp(-x.square()) * y,
    "clamp": lambda x, y, w: (x * w + y).clamp(-1, 1),
    "softplus": lambda x, y, w: F.softplus(x + w) - y,
    "select": lambda x, y, w: torch.where(x > y, x * w, y),
    "scaled softmax": lambda x, y, w: torch.softmax(x * 0.125 + y, -1),
    "softmax and gate": lambda x, y, w: torch.softmax(x, -1) * torch.sigmoid(y),
    "largest": lambda x, y, w: x / (1 + x.abs().amax(-1, keepdim=True)),
    "sum of squares": lambda x, y, w: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1) * w,
    "mean": lambda x, y, w: (x - x.mean(-1, keepdim=True)) * w + y,
    "norm and silu": lambda x, y, w: F.silu(F.layer_norm(x, x.shape[-1:], w)) * y,
    "norm of a gate": lambda x, y, w: F.rms_norm(F.silu(x) * y, x.shape[-1:], w, 1e-6),
    "two norms": lambda x, y, w: F.layer_norm(x, x.shape[-1:], w) + F.layer_norm(y, x.shape[-1:]),
    "log of a sum": lambda x, y, w: x - torch.logsumexp(x + y, -1, keepdim=True),
    "polynomial": lambda x, y, w: ((x * 0.5 + 1) * x + y) * x + w,
}
"""Twenty functions of two arrays and a row."""


class _Chained(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def generated(chain: Callable[..., Any], inputs: tuple[Tensor, ...], device: str) -> nn.Module:
    """Returns the package that a chain becomes, on the device."""
    module = regraft.capture(_Chained(chain).eval(), inputs)
    with tempfile.TemporaryDirectory() as folder:
        save_package(module, Path(folder))
        return load_package(Path(folder)).to(device)


def _row(
    chain: Callable[..., Any],
    inputs: Inputs,
    example: tuple[Tensor, ...],
    device: str,
    **about: Any,
) -> Row:
    """Returns the row of a chain; its package is written when it is timed.

    Norms of groups stand beside PyTorch's own kernels as well.
    """

    def ours() -> Call:
        if not made:
            made.append(generated(chain, example, device))
        return function(made[0], inputs)()

    made: list[nn.Module] = []
    peers = {INDUCTOR: function(compiled(chain), inputs)}
    if "groups" in about["name"]:
        peers["eager"] = function(chain, inputs)
    return Row(19, ours=ours, peers=peers, **about)


def chain_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields each chain; the goal is asked of all of them together."""
    R, N = max(1, sizes.rows // 4), sizes.width
    example = tuple(
        torch.ones(shape, dtype=sizes.dtype) for shape in ((R, N), (R, N), (N,))
    )  # on a CPU: captured, not run
    inputs = lambda: (randn(R, N), randn(R, N), randn(N))  # noqa: E731
    names = list(CHAINS)[:: 5 if sizes.is_tiny else 1]
    for name in names:
        yield _row(
            CHAINS[name], inputs, example, device, name=f"chain {name} {R}x{N}",
            num_bytes=3 * R * N * sizes.dtype.itemsize, goal="1.0x Inductor",
            together=f"{len(names)} generated chains {R}x{N}",
        )  # fmt: skip
    yield from _product_rows(randn, sizes, device)


def _product_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields chains around products that are limited by bytes, and one of images."""
    rows, K, N = (5, 33, 17) if sizes.is_tiny else (64, 4096, 4096)
    small = 17 if sizes.is_tiny else 192
    many = 5 if sizes.is_tiny else 1 << 17
    B, C, H = (2, 32, 3) if sizes.is_tiny else (64, 256, 28)
    wide, side = (32, 3) if sizes.is_tiny else (320, 64)  # of a UNet's first blocks
    shapes: Mapping[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
        f"product and residual {rows}x{N}x{K}": (
            lambda x, w, y: y + F.linear(x, w), ((rows, K), (N, K), (rows, N)),
        ),
        f"norm and product {rows}x{N}x{K}": (
            lambda x, g, w: F.linear(F.rms_norm(x, x.shape[-1:], g, 1e-6), w),
            ((rows, K), (K,), (N, K)),
        ),
        f"product, residual and norm {many}x{small}x{small}": (
            lambda x, w, y, g: F.rms_norm(y + F.linear(x, w), y.shape[-1:], g, 1e-6),
            ((many, small), (small, small), (many, small), (small,)),
        ),
        f"channels of planes {B}x{C}x{H}x{H}": (
            lambda x, y, c: F.relu(x + c[:, None, None] + y),
            ((B, C, H, H), (B, C, H, H), (C,)),
        ),
        f"groups of channels {B}x{wide}x{side}x{side}": (
            lambda x, g, b, y: F.silu(F.group_norm(x, 32, g, b)) + y,
            ((B, wide, side, side), (wide,), (wide,), (B, wide, side, side)),
        ),
    }  # fmt: skip
    for name, (chain, given) in shapes.items():
        example = tuple(torch.ones(shape, dtype=sizes.dtype) for shape in given)
        inputs = lambda given=given: tuple(randn(*shape) for shape in given)  # noqa: E731
        read = sum(x.numel() for x in example)
        written = max(example[0].shape[0] * N, 0) if "product" in name else example[0].numel()
        written = many * small if "residual and norm" in name else written
        yield _row(
            chain, inputs, example, device, name=name,
            num_bytes=(read + written) * sizes.dtype.itemsize,
        )  # fmt: skip
