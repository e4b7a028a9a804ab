"""Adapters: what is trained in place of a matrix, and folds into it exactly.

An adapter is a parametrization of the parameter: whatever reads the parameter reads the sum, and
folding stores the very tensor that it read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft.ir.errors import UsageError
from regraft.passes.recovery.task import Dsee, Lora, Spp


class LoraDelta(nn.Module):
    """`W + (alpha / rank) B A`.

    Args:
        weight: f32[M, N].
        options: Rank and scale.
        generator: Draws `A`.
    """

    def __init__(self, weight: Tensor, options: Lora, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        bound = 1 / math.sqrt(columns)
        a = torch.empty(options.rank, columns, dtype=weight.dtype)
        self.a = nn.Parameter(a.uniform_(-bound, bound, generator=generator).to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(rows, options.rank))
        self.scale = options.alpha / options.rank

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the sum f32[M, N]."""
        return weight + self.scale * (self.b @ self.a)


class SppDelta(nn.Module):
    """`W + s W * repeat(A) * b`: exact zeros of `W` stay zeros, and get no gradient.

    Args:
        weight: f32[M, N], sparse.
        options: Groups of rows and scale.
        generator: Draws `A`.
    """

    def __init__(self, weight: Tensor, options: Spp, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        groups = math.gcd(options.groups, rows)
        bound = 1 / math.sqrt(groups)
        a = torch.empty(groups, columns, dtype=weight.dtype)
        self.a = nn.Parameter(a.uniform_(-bound, bound, generator=generator).to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(rows, 1))
        self.scale = options.scale

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the sum f32[M, N]."""
        repeats = weight.shape[0] // self.a.shape[0]
        return weight + self.scale * weight * self.a.repeat_interleave(repeats, 0) * self.b


class DseeDelta(nn.Module):
    """`W + U V + S`, with `S` of a few numbers at fixed places.

    Args:
        weight: f32[M, N], sparse.
        options: Rank, and how many numbers.
        generator: Draws `V`.
    """

    places: Tensor

    def __init__(self, weight: Tensor, options: Dsee, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        bound = 1 / math.sqrt(columns)
        v = torch.empty(options.rank, columns, dtype=weight.dtype)
        self.v = nn.Parameter(v.uniform_(-bound, bound, generator=generator).to(weight.device))
        self.u = nn.Parameter(weight.new_zeros(rows, options.rank))
        count = min(options.kept, weight.numel())
        self.s = nn.Parameter(weight.new_zeros(count))
        self.register_buffer("places", weight.detach().abs().flatten().topk(count).indices)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the sum f32[M, N]."""
        few = weight.new_zeros(weight.numel()).index_add(0, self.places, self.s)
        return weight + self.u @ self.v + few.view_as(weight)


def attach(net: nn.Module, paths: Iterable[str], adapter: Lora | Spp | Dsee, seed: int) -> None:
    """Adapts the parameters at `paths`, in place; they themselves are no longer trained.

    Raises:
        UsageError: For a parameter that is no matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        owner, _, name = path.rpartition(".")
        weight = net.get_parameter(path)
        if weight.ndim != 2:
            raise UsageError(
                f"`{path}` has {weight.ndim} axes, an adapter takes matrices",
                hint="name matrices in `trained`, or leave it out: those of all linear layers",
            )
        weight.requires_grad_(False)
        delta: nn.Module
        match adapter:
            case Lora():
                delta = LoraDelta(weight, adapter, generator)
            case Spp():
                delta = SppDelta(weight, adapter, generator)
            case Dsee():
                delta = DseeDelta(weight, adapter, generator)
            case _:
                assert_never(adapter)
        parametrize.register_parametrization(net.get_submodule(owner), name, delta)


def fold(net: nn.Module, paths: Iterable[str]) -> None:
    """Replaces adapted parameters by their sums, in place; outputs stay bit-equal."""
    for path in paths:
        owner, _, name = path.rpartition(".")
        parametrize.remove_parametrizations(net.get_submodule(owner), name)
