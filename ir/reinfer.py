"""Infers nodes again and compares with what is recorded, leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.ir.dims import Dim, DimLike, known_different, known_equal
from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Content, Node, Scope
from regraft.ir.types import TensorType, Type

Finding = tuple[str, str, str | None]  # code, message, hint


def reinfer_findings(node: Node) -> Iterator[Finding]:
    """Yields what inference says otherwise than the node's results record."""
    graph = node.graph
    if graph is None:
        return
    scope = graph.scope
    recorded = [(value.type, value.content) for value in node.outputs]
    symbols, assumptions = dict(scope.symbols), dict(scope.assumptions)
    failure: TypeInferenceError | None = None
    try:
        node.infer()
    except TypeInferenceError as error:
        failure = error
    inferred = [(value.type, value.content) for value in node.outputs]
    for value, (type_, content) in zip(node.outputs, recorded, strict=True):
        value.type, value.content = type_, content
    if len(scope.symbols) != len(symbols):
        scope.symbols = symbols
    if len(scope.assumptions) != len(assumptions):
        scope.assumptions = assumptions
    if failure is not None:
        yield "V014", failure.message, failure.hint
        return
    for idx, ((old, known), (new, found)) in enumerate(zip(recorded, inferred, strict=True)):
        if old != new and (contradicts(old, new) or not _same_sizes(old, new, scope)):
            hint = "call `node.infer()` after changing operands or attributes"
            yield "V013", f"result {idx} is recorded as {old}, inference gives {new}", hint
        if _other_content(known, found):
            yield "V013", f"result {idx} holds {known}, inference gives {found}", None


def contradicts(a: Type, b: Type) -> bool:
    """Returns whether two types exclude each other, whatever the sizes are at run time."""
    if type(a) is not type(b):
        return TensorType() not in (a, b)
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        left, right = getattr(a, "element", None), getattr(b, "element", None)
        return left is not None and right is not None and contradicts(left, right)
    if a.dtype is not b.dtype and a.dtype is not None and b.dtype is not None:
        return True
    if a.shape is None or b.shape is None:
        return False
    return len(a.shape) != len(b.shape) or any(
        known_different(x, y) for x, y in zip(a.shape, b.shape, strict=True)
    )


def _same_sizes(a: Type, b: Type, scope: Scope) -> bool:
    """Returns whether sizes are equal where both types know them.

    A size that a defined symbol gives may be named otherwise.
    """
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return True
    if a.shape is None or b.shape is None:
        return True
    return all(
        known_equal(x, y) or _has_defined(x) or _has_defined(y) or _assumed(x, y, scope)
        for x, y in zip(a.shape, b.shape, strict=True)
    )


def _has_defined(dim: DimLike) -> bool:
    return isinstance(dim, Dim) and any(symbol.defined for symbol in dim.symbols())


def _assumed(a: DimLike, b: DimLike, scope: Scope) -> bool:
    """Returns whether recorded assumptions make two sizes equal."""
    same = {
        symbol.name: item.left
        for item in scope.assumptions.values()
        if isinstance(item.right, Dim) and (symbol := item.right.as_symbol()) is not None
    }
    pairs = scope.assumptions
    if (a, b) in pairs or (b, a) in pairs:
        return True
    for _ in range(len(same)):  # a chain of assumptions is at most that long
        a, b = (dim.bind(same) if isinstance(dim, Dim) else dim for dim in (a, b))
        if known_equal(a, b):
            return True
    return False


def _other_content(a: Content | None, b: Content | None) -> bool:
    if a is None or b is None or a == b:
        return False
    left, right = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    return len(left) != len(right) or any(map(known_different, left, right))
