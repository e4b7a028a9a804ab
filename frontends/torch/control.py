"""Higher-order operators of an export: regions that are inlined, branches and loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.call import UnsupportedCallError
from regraft.frontends.torch.importer import GraphImporter
from regraft.frontends.torch.nodes import placeholders
from regraft.frontends.torch.scalars import counted, number
from regraft.frontends.torch.tensors import DTYPES
from regraft.ir.constants import is_constant
from regraft.ir.graph import Graph, Value
from regraft.ir.ops import control as ops
from regraft.ir.types import DType, TensorType, Type

HigherOrder = Callable[[GraphImporter, torch.fx.Node], Any]


def _set_grad(importer: GraphImporter, node: torch.fx.Node) -> Any:
    _, region, *args = node.args
    return _inline(importer, region, args)


def _autocast(importer: GraphImporter, node: torch.fx.Node) -> Any:
    """Within an enabled region, calls compute in the type that the export gives their results."""
    _, dtype, enabled, _, region, *args = node.args
    return _inline(importer, region, args, autocast=DTYPES.get(dtype) if enabled else None)


def _inline(
    importer: GraphImporter, region: Any, args: Sequence[Any], autocast: DType | None = None
) -> Any:
    """Imports a region into the graph that calls it; aliases go through."""
    module = importer.convert(region)
    nested = GraphImporter(importer.session, importer.graph, module, importer.loc)
    nested.writes = importer.writes
    nested.autocast = autocast
    for placeholder, arg in zip(placeholders(module.graph), args, strict=True):
        nested.env[placeholder] = importer.convert(arg)
    return nested.run(module.graph)


class _Bodies:
    """Bodies of one control-flow node, and the outer values that they capture.

    Args:
        importer: Importer of the graph around.
    """

    def __init__(self, importer: GraphImporter) -> None:
        self.importer = importer
        self.captures: list[Value] = []

    def capture(self, args: Sequence[Any]) -> list[Any]:
        """Returns arguments of the node: tensors are captured, numbers are known everywhere."""
        found = []
        for arg in args:
            converted = self.importer.convert(arg)
            if isinstance(converted, Handle):
                value = converted.read()
                if not is_constant(value) and value not in self.captures:
                    self.captures.append(value)
                found.append(value)
            else:
                found.append(converted)
        return found

    def open(self, formals: Sequence[tuple[str | None, Type]]) -> _Body:
        """Starts a body with inputs of its own; the captures follow them."""
        return _Body(self, formals)


class _Body:
    """One body graph under construction."""

    def __init__(self, bodies: _Bodies, formals: Sequence[tuple[str | None, Type]]) -> None:
        self.session = bodies.importer.session
        self.loc = bodies.importer.b.loc
        self.graph = Graph(bodies.importer.graph.scope)
        self.formals = [self.graph.add_input(name, type_) for name, type_ in formals]
        self.inner: dict[Value, Value] = {}
        for outer in bodies.captures:
            value = self.graph.add_input(outer.name, outer.type)
            value.content = outer.content
            self.inner[outer] = value

    def _here(self, arg: Any) -> Any:
        """Returns an outer argument as the body sees it."""
        if not isinstance(arg, Value):
            return arg
        found = self.inner.get(arg)
        if found is None and is_constant(arg) and arg.producer is not None:
            producer = arg.producer
            copy = self.graph.create(producer.op, (), producer.attrs, before=self.graph.first)
            found = copy.output
            found.name = arg.name
            self.inner[arg] = found
        return Handle(arg if found is None else found)

    def run(self, region: torch.fx.GraphModule, args: Sequence[Any]) -> list[Value]:
        """Imports a region on arguments of the body, outer values among them."""
        importer = GraphImporter(self.session, self.graph, region, self.loc)
        for placeholder, arg in zip(placeholders(region.graph), args, strict=True):
            here = self._here(arg)
            val = placeholder.meta.get("val")
            if isinstance(val, torch.SymInt) and isinstance(here, Handle):
                here = counted(importer.b, here.read())
                self.session.sizes.define(val.node.expr, here)
            importer.env[placeholder] = here
        results = importer.run(region.graph)
        items = results if isinstance(results, tuple) else (results,)
        return [value_of(importer, item) for item in items]


def value_of(importer: GraphImporter, item: Any) -> Value:
    """Returns the tensor of a handle or number."""
    if item is None:
        raise UnsupportedCallError("a region that gives None")
    return item.read() if isinstance(item, Handle) else number(importer.b, item)


def _typed(values: Sequence[Value]) -> list[tuple[str | None, Type]]:
    return [(value.name, value.type) for value in values]


def _cond(importer: GraphImporter, node: torch.fx.Node) -> Any:
    pred, then, other, args = node.args
    condition = importer.convert(pred)
    if isinstance(condition, bool):
        return _inline(importer, then if condition else other, args)
    bodies = _Bodies(importer)
    given = bodies.capture(args)
    graphs = []
    for region in (then, other):
        body = bodies.open(())
        for value in body.run(importer.convert(region), given):
            body.graph.add_output(f"out{len(body.graph.outputs)}", value)
        graphs.append(body.graph)
    made = importer.b.node(
        ops.if_, value_of(importer, condition), *bodies.captures,
        num_outputs=len(graphs[0].outputs), bodies=tuple(graphs),
        num_captures=len(bodies.captures),
    )  # fmt: skip
    return tuple(Handle(value) for value in made.outputs)


def _while_loop(importer: GraphImporter, node: torch.fx.Node) -> Any:
    test, step, carried_args, others = node.args
    carried = [value_of(importer, importer.convert(arg)) for arg in carried_args]
    bodies = _Bodies(importer)
    given = bodies.capture(others)
    # the test before the first iteration is made where the loop stands
    handles = [Handle(value) for value in carried]
    outer = GraphImporter(importer.session, importer.graph, importer.convert(test), importer.loc)
    for placeholder, arg in zip(
        placeholders(outer.owner.graph), [*handles, *map(_handle, given)], strict=True
    ):
        outer.env[placeholder] = arg
    first = value_of(importer, outer.run(outer.owner.graph))
    head = [("i", TensorType(DType.I64, ())), ("go", TensorType(DType.BOOL, ()))]
    body = bodies.open([*head, *_typed(carried)])
    nexts = body.run(importer.convert(step), [*body.formals[2:], *given])
    (again,) = body.run(importer.convert(test), [*nexts, *given])
    for i, value in enumerate([again, *nexts]):
        body.graph.add_output(f"out{i}", value)
    made = importer.b.node(
        ops.loop, None, first, *carried, *bodies.captures,
        num_outputs=len(carried), bodies=(body.graph,),
        num_carried=len(carried), num_captures=len(bodies.captures),
    )  # fmt: skip
    return tuple(Handle(value) for value in made.outputs)


def _handle(arg: Any) -> Any:
    return Handle(arg) if isinstance(arg, Value) else arg


def _scan(importer: GraphImporter, node: torch.fx.Node) -> Any:
    combine, init, xs, others = node.args
    carried = [value_of(importer, importer.convert(arg)) for arg in init]
    scanned = [value_of(importer, importer.convert(arg)) for arg in xs]
    made = _scanned(importer, combine, carried, scanned, others)
    return tuple(Handle(value) for value in made)


def _map(importer: GraphImporter, node: torch.fx.Node) -> Any:
    step, xs, others = node.args
    scanned = [value_of(importer, importer.convert(arg)) for arg in xs]
    return tuple(Handle(value) for value in _scanned(importer, step, (), scanned, others))


def _scanned(
    importer: GraphImporter,
    region: Any,
    carried: Sequence[Value],
    scanned: Sequence[Value],
    others: Sequence[Any],
) -> Sequence[Value]:
    """Returns the last carried values, then what a region gives at every first position, stacked.

    Args:
        importer: Importer of the graph around.
        region: The region: carried values, positions, others -> next carried values and the rest.
        carried: First carried values.
        scanned: What is taken apart along axis 0.
        others: What is the same in every step.
    """
    bodies = _Bodies(importer)
    given = bodies.capture(others)
    slices = [(value.name, ops.slice_type(value.type, 0)) for value in scanned]
    body = bodies.open([*_typed(carried), *slices])
    results = body.run(importer.convert(region), [*body.formals, *given])
    for i, value in enumerate(results):
        body.graph.add_output(f"out{i}", value)
    stacked = len(results) - len(carried)
    made = importer.b.node(
        ops.scan, *carried, *scanned, *bodies.captures,
        num_outputs=len(results), bodies=(body.graph,),
        num_carried=len(carried), num_scanned=len(scanned), num_captures=len(bodies.captures),
        input_axes=(0,) * len(scanned), input_reversed=(0,) * len(scanned),
        output_axes=(0,) * stacked, output_reversed=(0,) * stacked,
    )  # fmt: skip
    return made.outputs


def _invoke(importer: GraphImporter, node: torch.fx.Node) -> Any:
    region, _, *args = node.args
    return _inline(importer, region, args)


def _written_out(importer: GraphImporter, node: torch.fx.Node) -> Any:
    """Attention with a score of the user's own, in the calls that compute it on any device."""
    if not importer.import_decomposed(node):
        raise UnsupportedCallError("sizes have to be equal: give them one name in dynamic_shapes")
    return importer.env[node]


HIGHER_ORDER: dict[str, HigherOrder] = {
    "wrap_with_set_grad_enabled": _set_grad,
    "wrap_with_autocast": _autocast,
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "map_impl": _map,
    "invoke_subgraph": _invoke,
    "flex_attention": _written_out,
}
"""By name of the operator."""
