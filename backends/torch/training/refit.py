"""Linear layers solved for by least squares.

With `X` what a layer multiplies, a column of ones for the bias, and `R` what its result lacks of
the target, the change `D` of the weight makes `|X D - R|² + λ |D|²` least: `(XᵀX + λ) D = XᵀR`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regraft.backends.torch.tensors import tensor_from
from regraft.backends.torch.training.nets import NamedNet
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.task import Refit

_HELD_OUT = 4
"""Every so many-th batch tells how strongly weights are kept."""

_INPUT, _RESULT, _TARGET = "input", "result", "target"


def refit_layer(
    module: Module,
    teacher: Module,
    place: Refit,
    samples: Sequence[Batch],
    ridge: float,
    device: str,
) -> tuple[str, ...]:
    """Solves for one layer and stores it, in place; returns the names of the tensors that changed.

    Nothing changes where the change would do harm on batches that were held out.

    Raises:
        UnsupportedError: When its weight is no parameter, nor the transpose of one.
    """
    outputs = {_INPUT: place.input, _RESULT: place.result}
    net = NamedNet(module, outputs).to(device).requires_grad_(False)
    goal = NamedNet(teacher, {_TARGET: place.target}).to(device).requires_grad_(False)
    weight_path, is_transposed = _parameter(net, place.weight)
    bias_path = None if place.bias is None else _parameter(net, place.bias)[0]
    fit, held_out = _sums(net, goal, place, samples, device, place.bias is not None)
    change = _solved(fit, held_out, ridge)
    if change is None:
        return ()
    weight = net.net.get_parameter(weight_path)
    part = change[: weight.shape[1 if is_transposed else 0]]
    weight.add_((part.T if is_transposed else part).to(weight.dtype))
    if bias_path is not None:
        bias = net.net.get_parameter(bias_path)
        bias.add_(change[-1].to(bias.dtype))
    changed: tuple[str, ...] = net.store()
    return changed


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over positions: `gram` is `XᵀX` f64[K, K], `moment` is `XᵀR` f64[K, N]."""

    gram: Tensor
    moment: Tensor

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.gram + other.gram, self.moment + other.moment)

    def solve(self, ridge: float) -> Tensor:
        """Returns the change f64[K, N]."""
        strength = ridge * self.gram.diagonal().mean()
        eye = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        return torch.linalg.solve(self.gram + strength * eye, self.moment)

    def error(self, change: Tensor) -> float:
        """Returns `|X D - R|² - |R|²`: negative for a change that helps."""
        return float((change * (self.gram @ change - 2 * self.moment)).sum())


def _solved(fit: _Sums, held_out: _Sums | None, ridge: float) -> Tensor | None:
    """Returns the change; with few positions the strength of the ridge that held-out ones ask for.

    None where every change would do harm there.
    """
    least = max(ridge, 1e-9)
    if held_out is None:
        return fit.solve(least)
    errors = {}
    for strength in (least * 10**power for power in range(5)):
        errors[strength] = held_out.error(fit.solve(strength))
    best = min(errors, key=lambda strength: errors[strength])
    return (fit + held_out).solve(best) if errors[best] < 0 else None


def _sums(
    net: NamedNet,
    goal: NamedNet,
    place: Refit,
    samples: Sequence[Batch],
    device: str,
    has_bias: bool,
) -> tuple[_Sums, _Sums | None]:
    """Returns the sums over three of four batches, and over every fourth: None for too few."""
    found: dict[bool, _Sums] = {}
    for number, sample in enumerate(samples):
        batch = {name: tensor_from(np.asarray(x)).to(device) for name, x in sample.items()}
        x, rest = _positions(net, goal, place, batch)
        x = x if has_bias else x[:, :-1]
        # products in f32 over one batch, sums over batches in f64
        own = _Sums((x.T @ x).double(), (x.T @ rest).double())
        is_held_out = number % _HELD_OUT == _HELD_OUT - 1
        found[is_held_out] = found[is_held_out] + own if is_held_out in found else own
    if False not in found:
        raise AssertionError("refitting was asked for without samples")
    return found[False], found.get(True)


def _positions(
    net: NamedNet, goal: NamedNet, place: Refit, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns what the layer multiplies, ones behind it, and what its result lacks, as rows."""
    with torch.no_grad():
        own = net(batch)
        rest = goal(batch)[_TARGET].float() - own[_RESULT].float()
    x = own[_INPUT].float()
    rows, lacking = x.reshape(-1, x.shape[-1]), rest.reshape(-1, rest.shape[-1])
    if place.mask is not None:
        counts = batch[place.mask].reshape(-1) != 0
        rows, lacking = rows[counts], lacking[counts]
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1), lacking


def _parameter(net: NamedNet, value: Value) -> tuple[str, bool]:
    """Returns the parameter that an operand is, and whether it is transposed."""
    found = net.parameter_of(value)
    if found is None:
        raise UnsupportedError(
            f"`{value.name}` is no parameter of its own, nor the transpose of one",
            hint="canonicalize the module before it is refitted, or leave the refit out",
        )
    return found
