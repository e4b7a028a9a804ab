"""Aliases: which tensors of the export share memory, and what a write to one means for the others.

The IR has no memory. A tensor is a handle: the root of an allocation, or a view of another handle
by one call. A write to a handle makes a new value of its root, by undoing its views from the
innermost out; other handles of the allocation are computed anew when they are read next.
"""

from __future__ import annotations

from collections.abc import Callable

from regraft.ir.graph import Value
from regraft.ir.types import TensorType

Apply = Callable[[Value], Value]
"""Computes a view from the tensor that it looks at."""

Undo = Callable[[Value, Value], Value]
"""Returns a tensor (first) whose view was overwritten by a value (second)."""


class Allocation:
    """Memory that one or more handles look at.

    Attributes:
        version: Number of writes so far.
    """

    __slots__ = ("version",)

    def __init__(self) -> None:
        self.version = 0


class Handle:
    """One tensor of the export.

    Attributes:
        allocation: The memory that it looks at.
        parent: The tensor that it is a view of; None for the root of the allocation.
        apply: Computes the view from the parent.
        undo: Writes the view into the parent.
    """

    __slots__ = ("_value", "_version", "allocation", "apply", "parent", "undo")

    def __init__(
        self,
        value: Value,
        parent: Handle | None = None,
        apply: Apply | None = None,
        undo: Undo | None = None,
    ) -> None:
        self.allocation: Allocation = Allocation() if parent is None else parent.allocation
        self.parent = parent
        self.apply = apply
        self.undo = undo
        self._value = value
        self._version = self.allocation.version

    def read(self) -> Value:
        """Returns the present content; views are computed anew after a write."""
        version = self.allocation.version
        if self._version != version:
            if self.parent is None or self.apply is None:
                raise AssertionError("the root of an allocation is always up to date")
            self._value = self.apply(self.parent.read())
            self._version = version
        return self._value

    @property
    def type(self) -> TensorType:
        """Type of the content, which writes do not change."""
        type_ = self._value.type
        if not isinstance(type_, TensorType):
            raise TypeError("a handle holds a tensor")
        return type_

    def write(self, value: Value) -> None:
        """Replaces the content, and thereby that of every other handle of the allocation."""
        chain: list[tuple[Handle, Value]] = [(self, value)]
        handle = self
        while handle.parent is not None:
            if handle.undo is None:
                raise AssertionError("a view without an inverse is written to")
            value = handle.undo(handle.parent.read(), value)
            handle = handle.parent
            chain.append((handle, value))
        self.allocation.version += 1
        for each, content in chain:
            each._value, each._version = content, self.allocation.version
