"""What keeps a node: effects, and the sizes that only its results show."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.ir.constants import opaque
from regraft.ir.dims import Dim, DimLike, Symbol, symbols_of
from regraft.ir.graph import Graph, Node
from regraft.ir.opspec import AttrKind


def is_droppable(node: Node) -> bool:
    """Returns whether a node may go when nothing uses its results.

    No operator of the vocabulary and none of ONNX has an effect besides its results; an opaque
    operator of another dialect may.
    """
    return node.op is not opaque or node.attrs["dialect"].startswith("onnx:")


def is_detached(graph: Graph) -> bool:
    """Returns whether the graph is the body of an erased node."""
    parent = graph.parent
    while parent is not None:
        if parent.graph is None:
            return True
        parent = parent.graph.parent
    return False


def defined_symbol(dim: DimLike) -> Symbol | None:
    """Returns the symbol when a size is exactly one that only run time knows, else None."""
    symbol = dim.as_symbol() if isinstance(dim, Dim) else None
    return symbol if symbol is not None and symbol.defined else None


def defined_symbols(node: Node) -> Iterator[Symbol]:
    """Yields the defined symbols that are axes of a result of `node` and of no operand."""
    for value in node.outputs:
        for dim in value.shape or ():
            symbol = None if type(dim) is int else defined_symbol(dim)
            if symbol is not None and not any(
                dim in (operand.shape or ()) for operand in node.inputs if operand is not None
            ):
                yield symbol


def needed_symbols(node: Node) -> Iterator[Symbol]:
    """Yields the defined symbols in the size attributes of a node."""
    for attr in node.op.all_attrs.values():
        if attr.kind is not AttrKind.DIMS and attr.kind is not AttrKind.DIM:
            continue
        value = node.attrs.get(attr.name)
        if value is None or type(value) is int:
            continue
        for symbol in symbols_of(value if isinstance(value, tuple) else (value,)):
            if symbol.defined:
                yield symbol
