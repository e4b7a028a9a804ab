"""PyTorch's own decomposition of single calls: only those without an importer are traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx


class Decomposer:
    """Traces decompositions of calls of an export, on their own fake tensors."""

    def __init__(self) -> None:
        self._table: dict[Any, Callable[..., Any]] | None = None

    def trace(self, node: torch.fx.Node) -> torch.fx.GraphModule | None:
        """Returns a graph that computes the call, or None when PyTorch has no decomposition.

        Its placeholders are the nodes that the call reads, in order.
        """
        target = node.target
        if not isinstance(target, OpOverload):
            return None
        function = self._find(target)
        if function is None:
            return None
        inputs = node.all_input_nodes
        values = [item.meta.get("val") for item in inputs]

        def call(*items: Any) -> Any:
            by_node = dict(zip(inputs, items, strict=True))
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), by_node.__getitem__)
            result = function(*args, **kwargs)
            # the constructor of a named tuple would be a call of the graph
            return tuple(result) if isinstance(result, tuple) else result

        mode = _mode_of(values)
        fixed = _fixed_sizes(mode)
        with torch.no_grad(), mode if mode is not None else contextlib.nullcontext():
            traced = make_fx(call, tracing_mode="real" if mode is None else "fake")(*values)
        traced.graph.eliminate_dead_code()  # sizes that were read and are numbers
        if _fixed_sizes(mode) != fixed:  # it looked at sizes: the graph is that of the example only
            return None
        # some decompositions take one form of a call to another one of the same overload
        return None if any(inner.target is target for inner in traced.graph.nodes) else traced

    def _find(self, target: OpOverload) -> Callable[..., Any] | None:
        if self._table is None:
            from torch._decomp import core_aten_decompositions

            self._table = dict(core_aten_decompositions())
        found = self._table.get(target)
        if found is not None:
            return found
        if target._can_decompose():
            decompose: Callable[..., Any] = target.decompose
            return decompose
        return None


def _mode_of(values: list[Any]) -> Any:
    for value in values:
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None


def _fixed_sizes(mode: Any) -> int:
    """Returns how many symbols of the export are known to be numbers or other symbols."""
    env = getattr(mode, "shape_env", None)
    return 0 if env is None else len(env.replacements)
