"""Control flow: if, loop, scan. Bodies take their own inputs first and the captured values last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim, DimLike, Symbol, bind, dim_max
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node, Value
from regraft.ir.ops.bodies import (
    escapes,
    generalize,
    join,
    outside,
    own_dim,
    refresh_captures,
    reinfer,
    visible_symbols,
)
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import UNKNOWN, DType, OptionalType, TensorType, Type

Array = np.ndarray[Any, Any]

_CONTROL = Trait.RAW | Trait.CAPTURES | Trait.PURE


def _infer_if(node: Node) -> tuple[Type, ...]:
    if refresh_captures(node):
        for body in node.bodies:
            reinfer(body)
    then, other = (body.outputs for body in node.bodies)
    if len(then) != len(other):
        raise node.error(f"the branches give {len(then)} and {len(other)} results")
    types: list[Type] = []
    for i, (a, b) in enumerate(zip(then, other, strict=True)):
        # a size that both branches give alike cannot be known to one of them only
        type_ = a.type if a.type == b.type else join(a.type, b.type, partial(_branch_dim, node, i))
        types.append(UNKNOWN if type_ is None else type_)
        node.outputs[i].content = a.content if a.content == b.content else None
    return tuple(types)


def _branch_dim(node: Node, result: int, axis: int) -> DimLike:
    return own_dim(node, result, visible_symbols(node.inputs), axis)


def _eval_if(c: EvalContext, cond: Array, *captures: Any) -> tuple[Any, ...]:
    return tuple(c.run_body(0 if cond.reshape(-1)[0] else 1, captures))


def _carried(node: Node) -> Sequence[Value]:
    first = 2 if node.op is loop else 0
    num = node.attrs["num_carried"]
    return [v for v in node.inputs[first : first + num] if v is not None]


def _infer_loop(node: Node) -> tuple[Type, ...]:
    body, num = node.bodies[0], node.attrs["num_carried"]
    visible = generalize(node, 2, [v.type for v in _carried(node)], 1)
    pairs = zip(body.inputs[2 : 2 + num], body.outputs[1 : 1 + num], strict=True)
    types = [
        outside(_carried_type(formal, after), visible, partial(own_dim, node, i, visible))
        for i, (formal, after) in enumerate(pairs)
    ]
    trips = trip_count(node)
    types += [
        _stacked_type(node, i, value, visible, 0, trips)
        for i, value in enumerate(body.outputs[1 + num :], num)
    ]
    return tuple(UNKNOWN if type_ is None else type_ for type_ in types)


def _stacked_type(
    node: Node,
    result: int,
    value: Value,
    visible: frozenset[Symbol],
    axis: int,
    count: DimLike | None,
) -> TensorType:
    """Type of a body result collected over all iterations along `axis`; `count` of them."""
    if value.shape is None:
        return TensorType(value.dtype, None)
    axis %= len(value.shape) + 1
    dims: list[DimLike] = [
        own_dim(node, result, visible, i + (i >= axis)) if escapes(dim, visible) else dim
        for i, dim in enumerate(value.shape)
    ]
    dims.insert(axis, own_dim(node, result, visible, axis) if count is None else count)
    return TensorType(value.dtype, tuple(dims))


def _carried_type(formal: Value, after: Value) -> Type:
    """Type of a carried result: ONNX lets a loop start from an optional and give its element."""
    if isinstance(formal.type, OptionalType) and not isinstance(after.type, OptionalType):
        return after.type
    return formal.type


def trip_count(node: Node) -> DimLike | None:
    """Returns how often the body of a `loop` runs, when that is its trip count."""
    trip, cond = node.inputs[:2]
    if trip is None or trip.content is None:
        return None
    if cond is not None and not _is_true(cond):
        return None
    body = node.bodies[0]
    if body.outputs[0] is not body.inputs[1] and not _is_true(body.outputs[0]):
        return None
    count = trip.content[0] if isinstance(trip.content, tuple) else trip.content
    return dim_max(0, count)


def _is_true(value: Value) -> bool:
    array = constant_of(value, 1)
    return array is not None and bool(array.all())


def _eval_loop(c: EvalContext, trip: Array | None, cond: Array | None, *values: Any) -> Any:
    body, num = c.node.bodies[0], c.attrs["num_carried"]
    carried, captures = list(values[:num]), values[num:]
    limit = None if trip is None else int(trip.reshape(-1)[0])
    go = cond is None or bool(cond.reshape(-1)[0])
    rows: list[list[Any]] = [[] for _ in body.outputs[1 + num :]]
    i = 0
    while go and (limit is None or i < limit):
        formals = [_scalar(i, body.inputs[0], np.int64), _scalar(go, body.inputs[1], np.bool_)]
        again, *results = c.run_body(0, [*formals, *carried, *captures])
        go = bool(again.reshape(-1)[0])
        carried = results[:num]
        for row, result in zip(rows, results[num:], strict=True):
            row.append(result)
        i += 1
    stacked = [_stack(c, row, body.outputs[1 + num + j], 0) for j, row in enumerate(rows)]
    return (*carried, *stacked)


def _scalar(item: Any, formal: Value, dtype: Any) -> Array:
    return np.full((1,) * (formal.rank or 0), item, dtype)


def _stack(c: EvalContext, rows: list[Array], value: Value, axis: int) -> Array:
    """Stacks one result of all iterations; with none, the sizes come from its type (unknown: 0)."""
    if rows:
        return np.stack(rows, axis)
    sizes = [bind(dim, c.env) if isinstance(dim, Dim) else dim for dim in value.shape or ()]
    known = [size if isinstance(size, int) else 0 for size in sizes]
    known.insert(axis % (len(known) + 1), 0)
    return np.zeros(known, (value.dtype or DType.F32).numpy)


def _infer_scan(node: Node) -> tuple[Type, ...]:
    body, num, scans = node.bodies[0], node.attrs["num_carried"], node.attrs["num_scanned"]
    length: DimLike | None = None
    stale = False
    slices = zip(
        body.inputs[num : num + scans], node.inputs[num:], node.attrs["input_axes"], strict=False
    )
    for formal, value, axis in slices:
        if value is None:
            raise node.error("a scanned operand is missing")
        type_ = slice_type(value.type, axis)
        if formal.type != type_:
            formal.type, stale = type_, True
        if value.shape is not None and (length is None or isinstance(length, Dim)):
            length = value.shape[axis]
    if stale:
        reinfer(body)
    visible = generalize(node, 0, [v.type for v in _carried(node)], 0)
    types = [
        outside(formal.type, visible, partial(own_dim, node, i, visible))
        for i, formal in enumerate(body.inputs[:num])
    ]
    types += [
        _stacked_type(node, num + i, value, visible, axis, length)
        for i, (value, axis) in enumerate(
            zip(body.outputs[num:], node.attrs["output_axes"], strict=True)
        )
    ]
    return tuple(UNKNOWN if type_ is None else type_ for type_ in types)


def slice_type(type_: Type, axis: int) -> Type:
    """Returns the type of one slice of a scanned value: the axis is gone."""
    if not isinstance(type_, TensorType) or type_.shape is None:
        return TensorType(type_.dtype if isinstance(type_, TensorType) else None, None)
    axis %= max(1, len(type_.shape))
    return type_.with_shape(type_.shape[:axis] + type_.shape[axis + 1 :])


def _eval_scan(c: EvalContext, *values: Any) -> Any:
    body, num, scans = c.node.bodies[0], c.attrs["num_carried"], c.attrs["num_scanned"]
    carried, captures = list(values[:num]), values[num + scans :]
    scanned = [
        np.flip(np.moveaxis(x, axis, 0), 0) if back else np.moveaxis(x, axis, 0)
        for x, axis, back in zip(
            values[num : num + scans], c.attrs["input_axes"], c.attrs["input_reversed"], strict=True
        )
    ]
    rows: list[list[Array]] = [[] for _ in body.outputs[num:]]
    for i in range(scanned[0].shape[0] if scanned else 0):
        results = c.run_body(0, [*carried, *(x[i] for x in scanned), *captures])
        carried = results[:num]
        for row, result in zip(rows, results[num:], strict=True):
            row.append(result)
    stacked = [
        _stack(c, row[::-1] if back else row, value, axis)
        for row, value, axis, back in zip(
            rows,
            body.outputs[num:],
            c.attrs["output_axes"],
            c.attrs["output_reversed"],
            strict=True,
        )
    ]
    return (*carried, *stacked)


if_ = OpSpec(
    name="if",
    source="ONNX If-25",
    operands=(Operand("cond"), Operand("captures", variadic=True)),
    results=("results*",),
    attrs=(Attr("num_captures", AttrKind.INT, 0),),
    traits=_CONTROL,
    infer=_infer_if,
    eval=_eval_if,
    num_bodies=2,
)

loop = OpSpec(
    name="loop",
    source="ONNX Loop-25",
    operands=(
        Operand("trip_count", optional=True),
        Operand("cond", optional=True),
        Operand("values", variadic=True),
    ),
    results=("results*",),
    attrs=(
        Attr("num_carried", AttrKind.INT),
        Attr("num_captures", AttrKind.INT, 0),
    ),
    traits=_CONTROL,
    infer=_infer_loop,
    eval=_eval_loop,
    num_bodies=1,
)

scan = OpSpec(
    name="scan",
    source="ONNX Scan-25",
    operands=(Operand("values", variadic=True),),
    results=("results*",),
    attrs=(
        Attr("num_carried", AttrKind.INT),
        Attr("num_scanned", AttrKind.INT),
        Attr("num_captures", AttrKind.INT, 0),
        Attr("input_axes", AttrKind.INTS),
        Attr("input_reversed", AttrKind.INTS),
        Attr("output_axes", AttrKind.INTS, ()),
        Attr("output_reversed", AttrKind.INTS, ()),
    ),
    traits=_CONTROL,
    infer=_infer_scan,
    eval=_eval_scan,
    num_bodies=1,
)

OPS: tuple[OpSpec, ...] = (if_, loop, scan)
