"""Refuses operators of other frameworks that a module carries through, all of them at once."""

from __future__ import annotations

from regraft.ir.constants import opaque
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Node
from regraft.ir.module import Module

_ONNX = "onnx:"


def refuse_foreign(module: Module) -> None:
    """Checks that every opaque operator is one of ONNX; cost O(nodes).

    Raises:
        UnsupportedError: Listing the operators that are none, with counts and lines.
    """
    found: dict[str, list[Node]] = {}
    for node in module.graph.walk():
        if node.op is opaque and not node.attrs["dialect"].startswith(_ONNX):
            found.setdefault(node.attrs["op_type"], []).append(node)
    if not found:
        return
    lines = [f"  `{name}` x {len(nodes)}{_where(nodes[0])}" for name, nodes in found.items()]
    raise UnsupportedError(
        f"{len(found)} operators of PyTorch have no ONNX form:\n" + "\n".join(lines),
        hint="the target `torch` takes them as they are; for ONNX, write these lines otherwise or "
        "give an importer in `Plugin(torch_importers=…)`",
    )


def _where(node: Node) -> str:
    lines = [item for item in node.loc if not item.startswith(("torch:", "rule:"))]
    return f" at {lines[-1]}" if lines else ""
