"""Which input of a module says what positions of a value count, the others being filled up."""

from __future__ import annotations

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType


def mask_of(module: Module, value: Value, mask: str | None) -> str | None:
    """Returns the mask where the module takes it and its axes are leading ones of a value."""
    found = next((item for item in module.graph.inputs if item.name == mask), None)
    if found is None or not isinstance(found.type, TensorType):
        return None
    axes, shape = found.shape, value.shape
    if axes is None or shape is None or len(axes) >= len(shape):
        return None
    return mask if tuple(shape[: len(axes)]) == tuple(axes) else None
