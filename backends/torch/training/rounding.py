"""Weights that are rounded while they are trained (FlexRound), and the scales they end with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft.backends.torch.training.nets import NamedNet
from regraft.ir.graph import Value
from regraft.passes.recovery.task import FlexRound, Grid


class Rounded(nn.Module):
    """`s1 round(W / (s1 S2 s3))`, with logarithms of the divisors as parameters.

    Args:
        weight: f32[K, N], or [N, K] where `is_transposed`.
        grid: Codes, and where the scales begin.
        is_transposed: Whether the parameter lies as [N, K].
    """

    start: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, grid: Grid, *, is_transposed: bool) -> None:
        super().__init__()
        self.size, width = weight.shape[::-1] if is_transposed else weight.shape
        self.grid, self.is_transposed = grid, is_transposed
        zero = torch.zeros(1, 1) if grid.zero is None else torch.from_numpy(grid.zero.copy())
        self.register_buffer("start", torch.from_numpy(grid.scale.copy()).to(weight))
        self.register_buffer("zero", zero.to(weight))
        self.group = nn.Parameter(weight.new_zeros(self.start.shape))
        self.each = nn.Parameter(weight.new_zeros(self.size, width))
        self.output = nn.Parameter(weight.new_zeros(1, width))

    def scale(self) -> Tensor:
        """Returns s1, f32[G, N]."""
        return self.start * self.group.exp()

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the rounded weight, as it lies."""
        matrix = weight.T if self.is_transposed else weight
        scale, zero = self._along(self.scale()), self._along(self.zero)
        divided = matrix / (scale * (self.each + self.output).exp())
        # the value is rounded, the gradient is that of what was divided
        steps = divided + (divided.round() - divided).detach()
        codes = (steps + zero).clamp(self.grid.low, self.grid.high)
        found = (codes - zero) * scale
        return found.T if self.is_transposed else found

    def _along(self, numbers: Tensor) -> Tensor:
        """Returns numbers per group as [K, N]."""
        if len(numbers) == 1:
            return numbers
        return numbers.repeat_interleave(self.grid.group, 0)[: self.size]


def rounded_paths(net: NamedNet, adapter: FlexRound, paths: list[str]) -> list[str]:
    """Returns those of some parameters that are rounded."""
    known = {found[0] for grid in adapter.grids if (found := net.parameter_of(grid.weight))}
    return [path for path in paths if path in known]


def attach_rounding(net: NamedNet, paths: list[str], adapter: FlexRound) -> dict[str, Value]:
    """Rounds parameters in place; they themselves are not trained. Returns their operands."""
    operands: dict[str, Value] = {}
    for grid in adapter.grids:
        found = net.parameter_of(grid.weight)
        if found is None or found[0] not in paths or found[0] in operands:
            continue
        path, turned = found
        owner, _, name = path.rpartition(".")
        weight = net.net.get_parameter(path)
        weight.requires_grad_(False)
        rounded = Rounded(weight, grid, is_transposed=turned != grid.transposed)
        parametrize.register_parametrization(net.net.get_submodule(owner), name, rounded)
        operands[path] = grid.weight
    return operands


def scales_of(net: NamedNet, operands: Mapping[str, Value]) -> dict[Value, Tensor]:
    """Returns the scales of parameters that are rounded, by their operands."""
    found: dict[Value, Tensor] = {}
    for path, operand in operands.items():
        owner, _, name = path.rpartition(".")
        module = net.net.get_submodule(owner).parametrizations[name][0]
        found[operand] = module.scale().detach().cpu()
    return found
