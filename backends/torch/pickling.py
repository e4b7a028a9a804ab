"""Pickles and copies of generated modules, whose class no module of Python holds."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from regraft.backends.torch.weight_plan import WeightPlan

GENERATED = "regraft_generated"
"""Attribute of the generated class: its `Generated`."""

State = dict[str, Any]


def pickled(net: nn.Module) -> tuple[Callable[..., nn.Module], tuple[Any, ...]]:
    """Returns what a pickle of a generated module holds: its source and its tensors."""
    generated = getattr(type(net), GENERATED)
    state: State = {
        "parameters": {name: (p.data, p.requires_grad) for name, p in net.named_parameters()},
        "buffers": {name: buffer.data for name, buffer in net.named_buffers()},
        "training": net.training,
    }
    return restored, (replace(generated, plan=WeightPlan()), state)


def restored(generated: Any, state: State) -> nn.Module:
    """Returns the module that a pickle holds."""
    from regraft.backends.torch.build import instance  # builds on this file

    net = instance(generated)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.data, needs_grad = state["parameters"][name]
            parameter.requires_grad_(needs_grad)
        for name, buffer in net.named_buffers():
            buffer.data = state["buffers"][name]
    return net.train(state["training"])


def copied(net: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Returns a deep copy of a module; it is of the same class."""
    made: nn.Module = object.__new__(type(net))
    memo[id(net)] = made
    made.__dict__.update(deepcopy(net.__dict__, memo))
    return made
