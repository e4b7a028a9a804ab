"""Which tensors keep their zeros when they are trained: a record in the module."""

from __future__ import annotations

from collections.abc import Iterable

from regraft.ir.module import Module

KEY = "sparse"
"""Of the module's metadata: names of checkpoint tensors."""


def keep_zeros(module: Module, names: Iterable[str]) -> None:
    """Records that training leaves the zeros of tensors at zero."""
    module.meta[KEY] = tuple(sorted({*sparse_tensors(module), *names}))


def release_zeros(module: Module, names: Iterable[str]) -> None:
    """Records that tensors are not sparse any more."""
    gone = set(names)
    module.meta[KEY] = tuple(name for name in sparse_tensors(module) if name not in gone)


def sparse_tensors(module: Module) -> tuple[str, ...]:
    """Returns the checkpoint tensors whose zeros stay."""
    return tuple(module.meta.get(KEY, ()))
