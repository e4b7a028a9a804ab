"""Types across the border of a body: joins of branches, generalized carried types, escaping sizes.

A body computes with the types of its inputs. What leaves it must hold for every run of the body: a
size that differs between branches or iterations, or that only the body knows, becomes a defined
symbol of the control-flow node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from regraft.ir.dims import Dim, DimLike, Symbol, known_equal
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.types import OptionalType, SequenceType, TensorType, Type

Fresh = Callable[[int], DimLike]  # axis -> a size that says nothing


def join(a: Type | None, b: Type | None, fresh: Fresh | None) -> Type | None:
    """Returns the type of a value that is either an `a` or a `b`.

    Args:
        a: One type; None is an unknown element type.
        b: The other type.
        fresh: Gives the size of an axis on which they differ. None inside a sequence, whose
            elements differ among themselves: no symbol can stand for all of their sizes.
    """
    if a == b:
        return a
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        dtype = a.dtype if a.dtype is b.dtype else None
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(dtype, None)
        dims: list[DimLike] = []
        for axis, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)):
            if known_equal(x, y):
                dims.append(x)
            elif fresh is None:
                return TensorType(dtype, None)
            else:
                dims.append(fresh(axis))
        return TensorType(dtype, tuple(dims))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(join(a.element, b.element, None))
    # an optional joins with a bare value of its element type: the bare value is a present one
    if isinstance(a, OptionalType) or isinstance(b, OptionalType):
        left = a.element if isinstance(a, OptionalType) else a
        right = b.element if isinstance(b, OptionalType) else b
        return OptionalType(join(left, right, None))
    return TensorType(None, None)


def visible_symbols(operands: Iterable[Value | None]) -> frozenset[Symbol]:
    """Returns the symbols that the operands of a control-flow node, captures included, speak of."""
    found: set[Symbol] = set()
    for value in operands:
        if value is not None:
            found.update(_symbols(value.type))
            content = value.content
            for dim in content if isinstance(content, tuple) else (content,):
                if isinstance(dim, Dim):
                    found.update(dim.symbols())
    return frozenset(found)


def _symbols(type_: Type | None) -> Iterable[Symbol]:
    if isinstance(type_, TensorType):
        for dim in type_.shape or ():
            if isinstance(dim, Dim):
                yield from dim.symbols()
    elif isinstance(type_, SequenceType | OptionalType):
        yield from _symbols(type_.element)


def escapes(dim: DimLike, visible: frozenset[Symbol]) -> bool:
    """Returns whether `dim` depends on a size that only the body knows."""
    return isinstance(dim, Dim) and any(
        symbol.defined and symbol not in visible for symbol in dim.symbols()
    )


def outside(type_: Type | None, visible: frozenset[Symbol], fresh: Fresh | None) -> Type | None:
    """Returns `type_` as seen outside of the body: escaping sizes replaced by `fresh` ones."""
    if isinstance(type_, TensorType) and type_.shape is not None:
        hidden = [escapes(dim, visible) for dim in type_.shape]
        if not any(hidden):
            return type_
        if fresh is None:
            return type_.with_shape(None)
        return type_.with_shape(
            tuple(
                fresh(i) if h else d
                for i, (d, h) in enumerate(zip(type_.shape, hidden, strict=True))
            )
        )
    if isinstance(type_, SequenceType | OptionalType):
        return type(type_)(outside(type_.element, visible, None))
    return type_


def own_dim(node: Node, result: int, visible: frozenset[Symbol], axis: int) -> DimLike:
    """Returns the node's own symbol for an axis of a result; repeatable like `Node.fresh_dim`."""
    shape = node.outputs[result].shape
    if shape is not None and axis < len(shape) and isinstance(shape[axis], Dim):
        symbol = shape[axis].as_symbol()  # type: ignore[union-attr]  # a Dim, tested above
        if symbol is not None and symbol in visible:  # an operand's size, recorded before
            if node.graph is None:
                raise AssertionError(f"`{node.op.name}` is inferred outside a graph")
            return node.graph.scope.fresh()
    return node.fresh_dim(result, axis)


def accepts(formal: Type, actual: Type, visible: frozenset[Symbol]) -> bool:
    """Returns whether a body typed for `formal` also holds for an `actual`.

    A formal axis accepts any size when its size is a symbol of the body's own.
    """
    if formal == actual:
        return True
    if isinstance(formal, TensorType) and isinstance(actual, TensorType):
        if formal.dtype is not None and formal.dtype is not actual.dtype:
            return False
        if formal.shape is None:
            return True
        if actual.shape is None or len(actual.shape) != len(formal.shape):
            return False
        return all(
            known_equal(f, a) or _is_own(f, visible)
            for f, a in zip(formal.shape, actual.shape, strict=True)
        )
    if isinstance(formal, SequenceType) and isinstance(actual, SequenceType):
        return _accepts_element(formal.element, actual.element)
    if isinstance(formal, OptionalType):
        inner = actual.element if isinstance(actual, OptionalType) else actual
        return _accepts_element(formal.element, inner)
    return False


def _accepts_element(formal: Type | None, actual: Type | None) -> bool:
    return formal is None or join(formal, actual, None) == formal


def _is_own(dim: DimLike, visible: frozenset[Symbol]) -> bool:
    symbol = dim.as_symbol() if isinstance(dim, Dim) else None
    return symbol is not None and symbol.defined and symbol not in visible


def widen(
    formals: Sequence[Type],
    actuals: Sequence[Type],
    visible: frozenset[Symbol],
    fresh: Callable[[], DimLike],
) -> list[Type]:
    """Returns the formal types widened to accept what a run of the body gives for them.

    Repeated with the body typed anew, this ends: each step gives up a size, a rank or an element
    type for good.
    """
    result: list[Type] = []
    for formal, actual in zip(formals, actuals, strict=True):
        if accepts(formal, actual, visible):
            result.append(formal)
            continue
        seen = outside(actual, visible, lambda _: fresh())
        joined = join(formal, seen, lambda _: fresh())
        result.append(TensorType() if joined is None else joined)
    return result


def refresh_captures(node: Node) -> bool:
    """Gives captures the types and contents of their outer values; returns whether any changed."""
    num = node.attrs["num_captures"]
    if not num:
        return False
    outers = node.inputs[len(node.inputs) - num :]
    changed = False
    for body in node.bodies:
        for inner, outer in zip(body.inputs[len(body.inputs) - num :], outers, strict=True):
            if outer is not None and _retype(inner, outer):
                changed = True
    return changed


def _retype(inner: Value, outer: Value) -> bool:
    if inner.type is outer.type and inner.content is outer.content:
        return False
    same = inner.type == outer.type and inner.content == outer.content
    inner.type, inner.content = outer.type, outer.content
    return not same


def reinfer(body: Graph) -> None:
    """Infers every node of a body anew; cost O(nodes)."""
    for node in body:
        node.infer()


def generalize(
    node: Node, first: int, initial: Sequence[Type], first_result: int
) -> frozenset[Symbol]:
    """Makes the carried inputs of a loop body accept their initial and their next values.

    Args:
        node: A `loop` or `scan` with one body.
        first: Index of the first carried body input.
        initial: Types of the initial values.
        first_result: Index of the first carried body output.

    Returns:
        The symbols visible outside of the body.
    """
    body = node.bodies[0]
    visible = visible_symbols(node.inputs)
    stop = first + len(initial)
    stale = refresh_captures(node)
    for formal, type_ in zip(body.inputs[first:stop], initial, strict=True):
        if not accepts(formal.type, type_, visible):
            formal.type, stale = type_, True
    while True:
        if stale:
            reinfer(body)
        formals = [value.type for value in body.inputs[first:stop]]
        nexts = [v.type for v in body.outputs[first_result : first_result + len(initial)]]
        wider = widen(formals, nexts, visible, body.scope.fresh)
        if wider == formals:
            return visible
        for value, type_ in zip(body.inputs[first:stop], wider, strict=True):
            value.type = type_
        stale = True
