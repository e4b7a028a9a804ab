"""The branch of an `if` that runs another module on what the main graph reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.ir.builder import Builder
from regraft.ir.constants import weight
from regraft.ir.dims import Dim, DimLike, bind
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module, clone_graph
from regraft.ir.ops import gathering, logical, reshaping, scattering, selecting
from regraft.ir.opspec import AttrKind
from regraft.ir.types import DType, TensorType


def plain_branch(graph: Graph, captures: Sequence[Value], result: int) -> Graph:
    """Returns a body that hands on one of its captures."""
    body = Graph(graph.scope)
    formals = [_formal(body, value) for value in captures]
    body.add_output("kept", formals[result])
    return body


def whole_branch(source: Module, graph: Graph, captures: Sequence[Value]) -> Graph:
    """Returns a body that runs a module on everything.

    Args:
        source: The module; its inputs are the first captures.
        graph: The graph that the body is for.
        captures: Values of that graph: the inputs, and others that the body leaves alone.
    """
    body = Graph(graph.scope)
    formals = [_formal(body, value) for value in captures]
    inputs = dict(zip(source.graph.inputs, formals, strict=False))
    body.add_output("fallback", _copy(source, body, inputs, {}))
    return body


def row_branch(source: Module, graph: Graph, captures: Sequence[Value], rows: str) -> Graph:
    """Returns a body that runs a module on the rows of a mask, and writes them into the scores.

    Args:
        source: The module; its inputs are the first captures.
        graph: The graph that the body is for.
        captures: Values of that graph: the inputs, scores [B, C], and a mask bool[B].
        rows: Symbol of the size that tells rows apart, axis 0 of inputs.
    """
    body = Graph(graph.scope)
    formals = [_formal(body, value) for value in captures]
    scores, mask = formals[-2:]
    b = Builder(body)
    places = b.op(selecting.non_zero, mask)  # [1, U]
    chosen = b.op(reshaping.squeeze, places, axes=(0,))
    count = chosen.shape[0] if chosen.shape else None
    if count is None:
        raise AssertionError("places have a size")
    inputs = {}
    for formal, value in zip(source.graph.inputs, formals, strict=False):
        is_row = value.shape is not None and _names(value.shape[:1]) == rows
        inputs[formal] = b.op(gathering.gather, value, chosen, axis=0) if is_row else value
    found = _copy(source, body, inputs, {rows: count})
    where = b.op(reshaping.unsqueeze, chosen, axes=(1,))
    body.add_output("fallback", b.op(scattering.scatter_nd, scores, where, found))
    return body


def masked_branch(source: Module, graph: Graph, captures: Sequence[Value]) -> Graph:
    """Returns a body that runs a module on everything, and takes the rows of a mask from it.

    Args:
        source: The module; its inputs are the first captures.
        graph: The graph that the body is for.
        captures: Values of that graph: the inputs, scores [B, C], and a mask bool[B].
    """
    body = Graph(graph.scope)
    formals = [_formal(body, value) for value in captures]
    scores, mask = formals[-2:]
    found = _copy(source, body, dict(zip(source.graph.inputs, formals, strict=False)), {})
    b = Builder(body)
    column = b.op(reshaping.unsqueeze, mask, axes=(1,))
    body.add_output("fallback", b.op(logical.where, column, found, scores))
    return body


def _formal(body: Graph, value: Value) -> Value:
    formal = body.add_input(value.name, value.type)
    formal.content = value.content
    return formal


def _names(shape: Sequence[DimLike]) -> str | None:
    """Returns the name of the symbol that a size is, None for any other."""
    found = shape[0].as_symbol() if shape and isinstance(shape[0], Dim) else None
    return None if found is None else found.name


def _copy(
    source: Module, body: Graph, values: dict[Value, Value], sizes: Mapping[str, DimLike]
) -> Value:
    """Copies the nodes that make a module's only output; types are inferred where sizes change."""
    names: dict[str, str] = {}
    for node in source.graph:
        attrs: dict[str, Any] = {
            name: _bound(held, sizes) if _is_size(node, name) else held
            for name, held in node.attrs.items()
        }
        if node.op is weight:
            attrs["name"] = _held(source, body, str(node.attrs["name"]), names)
        made = body.create(
            node.op, [None if v is None else values[v] for v in node.inputs], attrs,
            num_outputs=len(node.outputs), loc=node.loc, infer=bool(sizes),
            bodies=tuple(clone_graph(inner, body.scope) for inner in node.bodies),
        )  # fmt: skip
        for old, new in zip(node.outputs, made.outputs, strict=True):
            if not sizes:
                new.type, new.content = old.type, old.content
            values[old] = new
    return values[source.graph.outputs[0]]


def _held(source: Module, body: Graph, name: str, names: dict[str, str]) -> str:
    """Returns the name of a tensor among those of the body's module, to which it is added once."""
    if name not in names:
        tensor, store = source.weights[name], body.scope.weights
        shared = name in store and store[name] is tensor
        names[name] = name if shared else store.add(name, tensor)
    return names[name]


def _is_size(node: Node, name: str) -> bool:
    attr = node.op.all_attrs.get(name)
    return attr is not None and attr.kind in (AttrKind.DIM, AttrKind.DIMS)


def _bound(held: Any, sizes: Mapping[str, DimLike]) -> Any:
    if held is None or not sizes:
        return held
    if isinstance(held, tuple):
        return tuple(bind(dim, sizes) for dim in held)
    return bind(held, sizes)


def is_scores(value: Value) -> bool:
    """Whether a value is f32[B, C] with at least two columns."""
    if not isinstance(value.type, TensorType) or value.dtype is not DType.F32:
        return False
    shape = value.shape
    return shape is not None and len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1
