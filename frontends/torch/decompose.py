"""PyTorch's own decomposition of single calls: only those without an importer are traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from regraft.frontends.torch.sizes import Sizes


class Decomposer:
    """Traces decompositions of calls of an export, on their own fake tensors."""

    def __init__(self, sizes: Sizes) -> None:
        """Starts with the sizes of the program.

        Args:
            sizes: Tell whether sizes that a decomposition takes for equal are known to be.
        """
        self._sizes = sizes
        self._table: dict[Any, Callable[..., Any]] | None = None

    def trace(self, node: torch.fx.Node) -> torch.fx.GraphModule | None:
        """Returns a graph that computes the call, or None when PyTorch has no decomposition.

        Its placeholders are the `traced_inputs` of the call, in order.
        """
        target = node.target
        function = self._find(target) if isinstance(target, OpOverload) else _written_out(target)
        if function is None:
            return None
        inputs = traced_inputs(node)
        values = [item.meta.get("val") for item in inputs]
        regions = {
            item: getattr(node.graph.owning_module, str(item.target))
            for item in node.all_input_nodes
            if item not in inputs
        }

        def call(*items: Any) -> Any:
            by_node = {**regions, **dict(zip(inputs, items, strict=True))}
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), by_node.__getitem__)
            result = function(*args, **kwargs)
            # the constructor of a named tuple would be a call of the graph
            return tuple(result) if isinstance(result, tuple) else result

        mode = _mode_of(values)
        before = dict(_replacements(mode))
        with torch.no_grad(), mode if mode is not None else contextlib.nullcontext():
            traced = make_fx(call, tracing_mode="real" if mode is None else "fake")(*values)
        traced.graph.eliminate_dead_code()  # sizes that were read and are numbers
        for symbol, expr in _replacements(mode).items():
            # it looked at sizes: unless it found what is so, the graph is that of the example
            known = before.get(symbol, symbol)
            if known != expr and not self._sizes.are_equal(known, expr):
                return None
        # some decompositions take one form of a call to another one of the same overload
        return None if any(inner.target is target for inner in traced.graph.nodes) else traced

    def _find(self, target: OpOverload) -> Callable[..., Any] | None:
        if self._table is None:
            from torch._decomp import core_aten_decompositions

            self._table = dict(core_aten_decompositions())
        found = self._table.get(target)
        if found is None and target.namespace != "aten":
            # what a library registered for an operator of its own, as ours does for kernels
            found = decomposition_table.get(target)
        if found is not None:
            return found
        if target._can_decompose():
            decompose: Callable[..., Any] = target.decompose
            return decompose
        return None


def traced_inputs(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Returns the nodes that a call reads, without the regions among its arguments."""
    return [item for item in node.all_input_nodes if item.op != "get_attr" or "val" in item.meta]


def _written_out(target: Any) -> Callable[..., Any] | None:
    """Returns what computes a higher-order operator in plain calls, for those that have it."""
    if getattr(target, "__name__", "") != "flex_attention":
        return None
    from torch._higher_order_ops.flex_attention import math_attention

    found: Callable[..., Any] = math_attention
    return found


def _mode_of(values: list[Any]) -> Any:
    for value in values:
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None


def _replacements(mode: Any) -> Mapping[Any, Any]:
    """Returns what symbols of the export are known to be: numbers, or other symbols."""
    env = getattr(mode, "shape_env", None)
    return {} if env is None else env.replacements
