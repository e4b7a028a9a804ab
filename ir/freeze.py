"""Fixing symbols to sizes, and stating one symbol by others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.ir.dims import Dim, DimLike, bind
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
    _replace(module, sizes)


def restate(module: Module, name: str, size: Dim) -> None:
    """Replaces an input symbol by a size, in place: of other symbols, or of other facts.

    `past + seq` for the length of a mask, or `past` from 0 on for what an exporter says begins at
    1. The caller knows that the module is right for these sizes.

    Raises:
        UsageError: For a symbol that the module does not have.
    """
    symbol = module.symbols.get(name)
    if symbol is None or symbol.defined:
        raise UsageError(f"the model has no size `{name}`")
    _replace(module, {name: size})
    for each in sorted(size.symbols(), key=lambda s: s.name):
        module.symbols.setdefault(each.name, each)


def _replace(module: Module, sizes: Mapping[str, DimLike]) -> None:
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


def _bind_graph(graph: Graph, sizes: Mapping[str, DimLike]) -> None:
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


def _bind_any(value: Any, sizes: Mapping[str, DimLike]) -> Any:
    if isinstance(value, Dim):
        return bind(value, sizes)
    if isinstance(value, tuple) and any(isinstance(item, Dim) for item in value):
        return tuple(_bind_any(item, sizes) for item in value)
    return value
