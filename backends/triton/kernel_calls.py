"""What a model calls of `kernels.py`, and which values kernels take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.backends.triton.generated_kernels import GeneratedKernels
from regraft.ir.graph import Node, Value
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

    def keep(self, node: Node, reason: str) -> None:
        """Notes why a node stays PyTorch's operator."""
        name = node.outputs[0].name or ""
        self.kept.append({"operator": node.op.name, "result": name, "reason": reason})


def fits(*values: Value | None) -> bool:
    """Whether kernels take values: all of one dtype that they know, with at least one axis."""
    dtypes = {None if value is None else value.dtype for value in values}
    return (
        len(dtypes) == 1
        and next(iter(dtypes)) in KERNEL_TYPES
        and all(value is not None and bool(value.rank) for value in values)
    )
