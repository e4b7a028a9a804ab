"""Linear layers solved for by least squares.

With `X` what a layer multiplies, a column of ones for the bias, and `R` what its result lacks of
the target, the change `D` of the weight makes `|X D - R|² + λ |D|²` least: `(XᵀX + λ) D = XᵀR`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    Raises:
        UnsupportedError: When its weight is no parameter, nor the transpose of one.
    """
    outputs = {_INPUT: place.input, _RESULT: place.result}
    net = NamedNet(module, outputs).to(device).requires_grad_(False)
    goal = NamedNet(teacher, {_TARGET: place.target}).to(device).requires_grad_(False)
    weight_path, is_transposed = _parameter(net, place.weight)
    bias_path = None if place.bias is None else _parameter(net, place.bias)[0]
    gram, moment = _sums(net, goal, place, samples, device)
    if bias_path is None:
        gram, moment = gram[:-1, :-1], moment[:-1]
    strength = max(ridge, 1e-6) * gram.diagonal().mean()
    change = torch.linalg.solve(
        gram + strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), moment
    )
    weight = net.net.get_parameter(weight_path)
    part = change[: weight.shape[1 if is_transposed else 0]]
    weight.add_((part.T if is_transposed else part).to(weight.dtype))
    if bias_path is not None:
        bias = net.net.get_parameter(bias_path)
        bias.add_(change[-1].to(bias.dtype))
    changed: tuple[str, ...] = net.store()
    return changed


def _sums(
    net: NamedNet, goal: NamedNet, place: Refit, samples: Sequence[Batch], device: str
) -> tuple[Tensor, Tensor]:
    """Returns `XᵀX` f64[K + 1, K + 1] and `XᵀR` f64[K + 1, N] over all positions that count."""
    gram: Tensor | None = None
    moment: Tensor | None = None
    for sample in samples:
        batch = {name: tensor_from(np.asarray(x)).to(device) for name, x in sample.items()}
        x, rest = _positions(net, goal, place, batch)
        # products in f32 over one batch, sums over batches in f64
        own, lacking = (x.T @ x).double(), (x.T @ rest).double()
        gram = own if gram is None else gram + own
        moment = lacking if moment is None else moment + lacking
    if gram is None or moment is None:
        raise AssertionError("refitting was asked for without samples")
    return gram, moment


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
    paths = net.slots_of(value)
    if len(paths) == 1 and net.plan.slots[paths[0]].is_trainable:
        parameter = net.net.get_parameter(paths[0])
        wanted = net.constant(value)
        for is_transposed in (True, False):
            array = parameter.T if is_transposed and parameter.ndim == 2 else parameter
            if array.shape == wanted.shape and torch.equal(array.cpu(), wanted):
                return paths[0], is_transposed and parameter.ndim == 2
    raise UnsupportedError(
        f"`{value.name}` is no parameter of its own, nor the transpose of one",
        hint="canonicalize the module before it is refitted, or leave the refit out",
    )
