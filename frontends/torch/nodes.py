"""Questions about nodes of an export: inputs, memory, what a call writes to."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from regraft.frontends.torch.aliases import Handle


def placeholders(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """Returns the inputs of a graph in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def plain(arg: Any) -> Any:
    """Returns an argument with the present content of every handle in its place."""
    if isinstance(arg, Handle):
        return arg.read()
    if isinstance(arg, tuple):
        return tuple([plain(item) for item in arg])
    return arg


def storage_of(val: torch.Tensor) -> int:
    """Returns the identity of the memory that a fake tensor looks at."""
    return int(val.untyped_storage()._cdata)


def written_arguments(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Returns the nodes whose tensors a call writes to."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return []
    if not target._schema.is_mutable:
        return []
    found: list[torch.fx.Node] = []
    for i, arg in enumerate(target._schema.arguments):
        if arg.alias_info is not None and arg.alias_info.is_write:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(arg.name)
            items = given if isinstance(given, list | tuple) else (given,)
            found += [item for item in items if isinstance(item, torch.fx.Node)]
    return found
