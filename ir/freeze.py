"""Fixing symbols to sizes, and inferring a whole graph anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.ir.dims import Dim, bind
from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.types import bind_type


def freeze(module: Module, sizes: Mapping[str, int]) -> None:
    """Replaces input symbols by fixed sizes everywhere in the module, in place.

    Raises:
        UsageError: For a symbol that the module does not have, or a size it cannot take.
    """
    for name, size in sizes.items():
        symbol = module.symbols.get(name)
        if symbol is None or symbol.defined:
            known = ", ".join(s.name for s in module.symbols.values() if not s.defined)
            raise UsageError(f"the model has no size `{name}`", hint=f"it has {known or 'none'}")
        if size < symbol.lo or (symbol.hi is not None and size > symbol.hi):
            raise UsageError(f"size `{name}` cannot be {size}", hint=f"at least {symbol.lo}")
    _bind_graph(module.graph, sizes)
    for name in sizes:
        del module.symbols[name]
    scope = module.graph.scope
    for key in list(scope.assumptions):
        left, right = bind(key[0], sizes), bind(key[1], sizes)
        if (left, right) != key:
            old = scope.assumptions.pop(key)
            if left != right:
                scope.assume_equal(left, right, old.reason)


def _bind_graph(graph: Graph, sizes: Mapping[str, int]) -> None:
    for value in graph.inputs:
        value.type = bind_type(value.type, sizes)
        value.content = _bind_any(value.content, sizes)
    for node in graph:
        for name, attr in node.attrs.items():
            node.attrs[name] = _bind_any(attr, sizes)
        for body in node.bodies:
            _bind_graph(body, sizes)
        for value in node.outputs:
            value.type = bind_type(value.type, sizes)
            value.content = _bind_any(value.content, sizes)


def _bind_any(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, Dim):
        return bind(value, sizes)
    if isinstance(value, tuple) and any(isinstance(item, Dim) for item in value):
        return tuple(_bind_any(item, sizes) for item in value)
    return value
