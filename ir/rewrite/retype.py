"""Keeps types right while values are replaced: merging, inferring users anew, renaming symbols.

A replacement may know more than what it replaces, or less, or have its own symbol for a size that
only run time knows. Both describe one value, so the merged type is true of it; users are inferred
anew, and a symbol that lost its definition is renamed wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.ir.dims import Dim, DimLike, bind, known_different, symbols_of
from regraft.ir.errors import RegraftError
from regraft.ir.graph import Assumption, Content, Graph, Node, Value
from regraft.ir.opspec import AttrKind
from regraft.ir.rewrite.liveness import defined_symbol, defined_symbols
from regraft.ir.types import TensorType, Type, bind_type


class Retyper:
    """Type bookkeeping of one rewrite."""

    __slots__ = ("_graph", "_renamed", "_touch")

    def __init__(self, graph: Graph, touch: Callable[[Node], None]) -> None:
        self._graph = graph
        self._touch = touch
        self._renamed: dict[str, DimLike] = {}

    def unify(self, old: Value, new: Value, where: str) -> bool:
        """Merges the types of a value and its replacement into the replacement's.

        Returns:
            Whether users must be inferred anew (call `propagate` after the replacement).

        Raises:
            RegraftError: When the types contradict: an error of the rule named in `where`.
        """
        if contradict(old.type, new.type):
            raise RegraftError(f"{where} replaces a value of type {old.type} by {new.type}")
        merged = merge_types(new.type, old.type)
        for type_ in (old.type, new.type):
            self._renamed.update(symbol_renames(type_, merged))
        changed = merged != old.type or merged != new.type
        new.type = merged
        return changed

    def propagate(self, value: Value) -> None:
        """Infers the users of a value anew, and theirs, as far as types change."""
        pending = [value]
        while pending:
            used = pending.pop()
            for user in used.users:
                if self._infer(user):
                    pending.extend(user.outputs)

    def refresh(self, node: Node) -> None:
        """Infers a node anew after a change, and its users as far as types change."""
        if self._infer(node):
            for value in node.outputs:
                self.propagate(value)

    def _infer(self, node: Node) -> bool:
        before = [(value.type, value.content) for value in node.outputs]
        node.infer()
        for body in node.bodies:  # control flow infers its bodies with it
            for inner in body.walk():
                self._touch(inner)
        changed = False
        for value, (type_, content) in zip(node.outputs, before, strict=True):
            if value.type != type_:
                # what was known stays known: a claim of the file, or of a replaced value
                merged = merge_types(value.type, type_)
                self._renamed.update(symbol_renames(type_, merged))
                value.type = merged
                changed = changed or merged != type_
            if value.content is None:
                value.content = content
            elif value.content != content:
                changed = True
        if changed:
            self._touch(node)
        return changed

    # -- defined symbols --------------------------------------------------------------------

    def defines_symbols(self, node: Node) -> bool:
        """Returns whether a size that only run time knows is first seen in a result of `node`.

        Such a node may be needed for its sizes although nothing uses its values.
        """
        return any(True for _ in defined_symbols(node))

    def flush(self) -> bool:
        """Renames symbols that lost their definition; returns whether there were any.

        Cost: O(nodes), once per rewrite that needs it.
        """
        if not self._renamed:
            return False
        rename_symbols(self._graph, self._renamed)
        self._renamed = {}
        return True


def symbol_renames(before: Type, after: Type) -> dict[str, DimLike]:
    """Returns what the defined symbols of one type are called in another of the same value."""
    renamed: dict[str, DimLike] = {}
    if isinstance(before, TensorType) and isinstance(after, TensorType):
        for old, new in zip(before.shape or (), after.shape or (), strict=False):
            symbol = None if type(old) is int else defined_symbol(old)
            if symbol is not None and old != new:
                renamed[symbol.name] = new
    return renamed


def contradict(a: Type, b: Type) -> bool:
    """Returns whether no value can have both types."""
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return type(a) is not type(b)
    if a.dtype is not b.dtype and a.dtype is not None and b.dtype is not None:
        return True
    if a.shape is None or b.shape is None:
        return False
    return len(a.shape) != len(b.shape) or any(map(known_different, a.shape, b.shape))


def merge_types(new: Type, old: Type) -> Type:
    """Returns what both types say of one value; where both know an axis, `new` wins."""
    if not isinstance(new, TensorType) or not isinstance(old, TensorType):
        return new
    dtype = old.dtype if new.dtype is None else new.dtype
    if new.shape is None or old.shape is None or len(new.shape) != len(old.shape):
        shape = old.shape if new.shape is None else new.shape
    else:
        shape = tuple(map(_merge_dims, new.shape, old.shape))
    return new if (dtype, shape) == (new.dtype, new.shape) else TensorType(dtype, shape)


def _merge_dims(new: DimLike, old: DimLike) -> DimLike:
    if type(new) is int or defined_symbol(new) is None:
        return new
    return new if defined_symbol(old) is not None else old


def rename_symbols(graph: Graph, renamed: dict[str, DimLike]) -> None:
    """Replaces symbols by dims in all types, contents and attributes of a graph and its bodies."""
    renamed = _resolved(renamed)
    scope = graph.scope
    for key, known in list(scope.assumptions.items()):
        left, right = bind(known.left, renamed), bind(known.right, renamed)
        if (left, right) != key:
            del scope.assumptions[key]
            if left != right:
                scope.assumptions[left, right] = Assumption(left, right, known.reason)
    for value in graph.inputs:
        _rename_value(value, renamed)
    for node in graph.walk():
        for value in node.outputs:
            _rename_value(value, renamed)
        for body in node.bodies:
            for value in body.inputs:
                _rename_value(value, renamed)
        for attr in node.op.all_attrs.values():
            if attr.kind in (AttrKind.DIM, AttrKind.DIMS) and attr.name in node.attrs:
                node.attrs[attr.name] = _rename(node.attrs[attr.name], renamed)


def _resolved(renamed: dict[str, DimLike]) -> dict[str, DimLike]:
    """Follows chains u3 -> u2 -> u1, so that one substitution suffices."""
    result = dict(renamed)
    for name in renamed:
        for _ in range(len(renamed)):
            after = bind(result[name], renamed)
            if after == result[name] or any(s.name == name for s in symbols_of((after,))):
                break
            result[name] = after
    return result


def _rename_value(value: Value, renamed: dict[str, DimLike]) -> None:
    value.type = bind_type(value.type, renamed)
    if value.content is not None:
        value.content = _rename(value.content, renamed)


def _rename(content: Content | Any, renamed: dict[str, DimLike]) -> Any:
    if isinstance(content, tuple):
        return tuple(bind(dim, renamed) for dim in content)
    return bind(content, renamed) if isinstance(content, Dim) else content
