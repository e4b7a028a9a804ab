"""Makes a module emittable: operators without an emitter become bodies, the rest is refused."""

from __future__ import annotations

from regraft.backends.torch.control import STATEMENTS
from regraft.backends.torch.emitter import EmitTable
from regraft.backends.torch.ops import FAMILIES
from regraft.backends.torch.ops.foreign import DIALECT
from regraft.backends.torch.tensors import TORCH_DTYPES
from regraft.ir.builder import Builder
from regraft.ir.constants import literal, opaque, weight
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import OpSpec
from regraft.ir.types import TensorType

_MAX_NAMED = 8


def check_emittable(module: Module, table: EmitTable | None = None) -> None:
    """Checks that every node can be emitted, before any work begins; cost O(nodes).

    Args:
        module: The module.
        table: Emitters by operator; default: regraft's own.

    Raises:
        UnsupportedError: Naming the operators that cannot, with their places.
    """
    table = EmitTable(*FAMILIES) if table is None else table
    problems: dict[str, list[str]] = {}
    for node in module.graph.walk():
        reason = _problem(node, table)
        if reason is not None:
            problems.setdefault(reason, []).append(_place(node))
    if not problems:
        return
    lines = [f"{reason}: {_listed(places)}" for reason, places in problems.items()]
    raise UnsupportedError(
        "the module has no PyTorch form\n  " + "\n  ".join(lines),
        hint="give these operators a body of others (a plugin can), or convert to `onnx`",
    )


def _problem(node: Node, table: EmitTable) -> str | None:
    if node.op is opaque and not node.attrs["dialect"].startswith(DIALECT):
        return f"`{node.attrs['op_type']}` of {node.attrs['dialect']}"
    for value in node.outputs:
        type_ = value.type
        if isinstance(type_, TensorType) and type_.dtype not in (None, *TORCH_DTYPES):
            return f"tensors of `{type_.dtype}`"
    return None if _has_form(node.op, table) else f"operator `{node.op.name}`"


def _has_form(op: OpSpec, table: EmitTable) -> bool:
    return (
        op in (weight, literal)
        or op in STATEMENTS
        or table.find(op) is not None
        or op.body is not None
    )


def _place(node: Node) -> str:
    name = node.output.name
    return f"`{name or (node.loc[0] if node.loc else node.op.name)}`"


def _listed(places: list[str]) -> str:
    more = len(places) - _MAX_NAMED
    return ", ".join(places[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def inline_bodies(module: Module, table: EmitTable) -> None:
    """Replaces operators that have no emitter by their bodies, in place."""
    pending = [node for node in module.graph.walk() if _is_inlined(node, table)]
    while pending:
        node = pending.pop()
        graph = node.graph
        if graph is None or node.op.body is None:
            raise AssertionError("a node without graph or body cannot be inlined")
        before = node.prev
        made = node.op.body(node, Builder(graph, node, node.loc))
        values = (made,) if isinstance(made, Value) else tuple(made)
        new = graph.first if before is None else before.next
        while new is not None and new is not node:
            if _is_inlined(new, table):
                pending.append(new)
            new = new.next
        graph.replace(node, values, f"{node.op.name}-body")


def _is_inlined(node: Node, table: EmitTable) -> bool:
    op = node.op
    return op not in (weight, literal) and op not in STATEMENTS and table.find(op) is None
