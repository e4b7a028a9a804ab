"""Forms of linear attention: ONNX Runtime's kernel, or products of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.backends.onnx.legalize.costs import Features
from regraft.backends.onnx.legalize.site import Build, Limits
from regraft.backends.onnx.ort_recurrence_ops import is_choice, kernel
from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.ops import linear_attention
from regraft.ir.ops.shapes import operands_of
from regraft.ir.opspec import OpSpec

LENGTHS: tuple[int, ...] = (64, 512, 2048)
_FULL, _PARTS = 32, 8


@dataclass(frozen=True, slots=True)
class RecurrenceSite:
    """Where a causal `linear_attention` without decay stands; chunks are the standard form."""

    name: str = "recurrence"
    roots: tuple[OpSpec, ...] = (linear_attention.linear_attention,)

    def features(self, node: Node, limits: Limits) -> Features | None:
        """Returns how columns of the state fill vectors; the length and the state's sizes."""
        if not is_choice(node):
            return None
        _, k, v = operands_of(node, 3)
        T, D, E = (k.shape or ())[2], int(str((k.shape or ())[3])), int(str((v.shape or ())[3]))
        return Features(
            {"columns": columns(E)}, {"S": limits.sizes(T, LENGTHS), "D": (D,), "E": (E,)}
        )

    def forms(self, node: Node, limits: Limits) -> Mapping[str, Build | None]:
        """Returns both forms; a single position has no chunks."""
        return {"chunks": lambda b: _chunks(node, b), "kernel": lambda b: kernel(node, b)}


def columns(size: int) -> str:
    """Returns whether values fill the vectors of the kernel: in full, in parts, or not."""
    return "full" if size % _FULL == 0 else "parts" if size % _PARTS == 0 else "odd"


def _chunks(node: Node, b: Builder) -> Sequence[Value]:
    body = node.op.body
    assert body is not None, "linear_attention has a body"
    made = body(node, b)
    return [made] if isinstance(made, Value) else made
