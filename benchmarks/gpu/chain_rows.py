"""Rows of the table about generated kernels: chains of element-wise operators and reductions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regraft
from benchmarks.gpu.row import INDUCTOR, Call, Maker, Randn, Row, Sizes, compiled, function
from regraft.backends.triton.package import load_package, save_package

_Chain = Callable[[Tensor, Tensor, Tensor], Tensor]
CHAINS: Mapping[str, _Chain] = {
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
    def __init__(self, function: _Chain) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return self.function(x, y, w)


def generated(chain: _Chain, inputs: tuple[Tensor, ...], device: str) -> nn.Module:
    """Returns the package that a chain becomes, on the device."""
    module = regraft.capture(_Chained(chain).eval(), inputs)
    with tempfile.TemporaryDirectory() as folder:
        save_package(module, Path(folder))
        return load_package(Path(folder)).to(device)


def _in_turn(calls: list[Maker]) -> Maker:
    def make() -> Call:
        made = [call() for call in calls]

        def run() -> None:
            for call in made:
                call()

        return run

    return make


def chain_rows(randn: Randn, sizes: Sizes, device: str) -> Iterator[Row]:
    """Yields each chain, and all of them together."""
    R, N = max(1, sizes.rows // 4), sizes.width
    example = tuple(
        torch.ones(shape, dtype=sizes.dtype) for shape in ((R, N), (R, N), (N,))
    )  # on a CPU: captured, not run
    inputs = lambda: (randn(R, N), randn(R, N), randn(N))  # noqa: E731
    names = list(CHAINS)[:: 5 if sizes.is_tiny else 1]
    ours, others = [], []
    size = 3 * R * N * sizes.dtype.itemsize
    for name in names:
        net = generated(CHAINS[name], example, device)
        ours.append(function(net, inputs))
        others.append(function(compiled(CHAINS[name]), inputs))
    yield Row(19, f"{len(names)} generated chains {R}x{N}", _in_turn(ours),
              {INDUCTOR: _in_turn(others)}, size * len(names), goal="1.0x Inductor")  # fmt: skip
