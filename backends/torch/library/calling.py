"""What a generated `forward` reads its arguments with, and makes its result of."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def expect(name: str, given: Any, captured: Any) -> None:
    """Checks that an argument has the value that the module was captured with.

    Raises:
        ValueError: When it has another one, which the module does not know.
    """
    if isinstance(given, Tensor) or type(given) is not type(captured) or given != captured:
        raise ValueError(f"`{name}` was {captured!r} at the capture, and is a part of the module")


def children_of(node: Any) -> Any:
    """Returns the children of an object of a class that PyTorch's trees know, in order."""
    known = torch.utils._pytree.SUPPORTED_NODES.get(type(node))
    return node if known is None else list(known.flatten_fn(node)[0])


def class_named(module: str, name: str) -> Any:
    """Returns a class by its module and qualified name: one of a function is in PyTorch's trees."""
    for known in torch.utils._pytree.SUPPORTED_NODES:
        if known.__module__ == module and known.__qualname__ == name:
            return known
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found
