"""How a generated module holds its tensors: containers of the model's own names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Scope(nn.Module):
    """Holds the parameters of one part of the model under their own names."""

    def __getitem__(self, name: int | str) -> Any:
        """Returns what stands under a number, or a name that no attribute can have."""
        return getattr(self, str(name))


def scope_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Returns the container of a dotted name, made where it is missing, and the last part."""
    *parts, name = path.split(".")
    for part in parts:
        if part not in root._modules:
            root.add_module(part, Scope())
        root = root.get_submodule(part)
    return root, name


def unread(tensor: Tensor) -> Tensor:
    """Returns a tensor, marked until it is read from the weights file."""
    tensor.is_unread = True
    return tensor


def parameter(
    root: nn.Module, path: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Registers a parameter; its content comes from the weights file."""
    scope, name = scope_of(root, path)
    scope.register_parameter(name, unread(nn.Parameter(torch.empty(shape, dtype=dtype))))


def buffer(
    root: nn.Module, path: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Registers a buffer of the model; its content comes from the weights file."""
    scope, name = scope_of(root, path)
    scope.register_buffer(name, unread(torch.empty(shape, dtype=dtype)))


def stored_constant(
    root: nn.Module, path: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Registers a constant whose content comes from the weights file."""
    constant(root, path, unread(torch.empty(shape, dtype=dtype)))


def constant(root: nn.Module, path: str, value: Tensor) -> None:
    """Registers a constant, which moves with the module and is not part of its `state_dict`."""
    scope, name = scope_of(root, path)
    scope.register_buffer(name, value, persistent=False)


def tie(root: nn.Module, path: str, other: str) -> None:
    """Registers a parameter or buffer under a second name."""
    scope, name = scope_of(root, path)
    target, target_name = scope_of(root, other)
    if target_name in target._parameters:
        scope.register_parameter(name, target._parameters[target_name])
    else:
        scope.register_buffer(name, target._buffers[target_name])


def part(root: nn.Module, path: str, module: nn.Module) -> None:
    """Registers a part of the model that has a `forward` of its own."""
    scope, name = scope_of(root, path)
    scope.add_module(name, module)
