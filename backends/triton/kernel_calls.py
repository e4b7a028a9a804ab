"""What a model calls of `kernels.py`, and which values kernels take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.backends.torch.emitter import EmitContext, EmitTable, Emitted
from regraft.backends.triton.generated_kernels import GeneratedKernels
from regraft.backends.triton.node_places import place_of
from regraft.ir.graph import Value
from regraft.ir.types import DType

KERNEL_TYPES = frozenset({DType.F32, DType.F16, DType.BF16})


class KernelCalls:
    """The functions of `kernels.py` that a model calls, in the order of their first use.

    Attributes:
        functions: Those that are copied.
        generated: Those that are written for the model.
        kept: Operators that PyTorch computes although kernels of their kind exist, and why.
    """

    def __init__(self) -> None:
        self.functions: dict[Callable[..., Any], None] = {}
        self.generated = GeneratedKernels()
        self.kept: list[dict[str, str]] = []

    def name(self, function: Callable[..., Any]) -> str:
        """Returns the expression of a function of the kernels, which the package then holds."""
        self.functions.setdefault(function)
        return f"kernels.{function.__name__}"

    def keep(self, e: EmitContext, table: EmitTable, reason: str) -> Emitted:
        """Returns PyTorch's form of a node, and notes why it stays PyTorch's."""
        self.note(e, reason)
        return before(table, e)

    def note(self, e: EmitContext, reason: str) -> None:
        """Notes why a node, or a part of it, stays PyTorch's."""
        found = {"operator": e.node.op.name, "at": place_of(e.node), "reason": reason}
        self.kept.append(found)


def before(table: EmitTable, e: EmitContext) -> Emitted:
    """Returns what the emitters of PyTorch make of a node."""
    emitter = table.find(e.node.op)
    if emitter is None:
        raise AssertionError(f"`{e.node.op.name}` has no emitter to PyTorch")
    return emitter(e)


def fits(*values: Value | None) -> bool:
    """Whether kernels take values: all of one dtype that they know, with at least one axis."""
    dtypes = {None if value is None else value.dtype for value in values}
    return (
        len(dtypes) == 1
        and next(iter(dtypes)) in KERNEL_TYPES
        and all(value is not None and bool(value.rank) for value in values)
    )
