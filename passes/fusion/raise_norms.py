"""Plans to raise normalizations to layer_norm, rms_norm, group_norm and instance_norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, cast, norm, reshaping
from regraft.ir.rewrite import Rewriter
from regraft.ir.types import DType, static_shape
from regraft.passes.analysis.norms import NormBlock, Scale
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.protocol import Skip

_OPS = {op.name: op for op in (norm.layer_norm, norm.rms_norm, norm.group_norm, norm.instance_norm)}
_PER_CHANNEL = ("group_norm", "instance_norm")

_Ones = dict[tuple[Graph, tuple[int, ...], DType, float], Value]


def plan_norms(found: Iterable[NormBlock], plan: Plan) -> None:
    """Adds every norm that is spelled out and that an operator computes."""
    ones: _Ones = {}
    for block in found:
        if block.is_canonical or block.kind not in _OPS:
            continue
        reason = _unfit(block)
        if reason is not None:
            plan.skipped.append(Skip(str(block.output.name), f"{block.kind}: {reason}"))
            continue
        name = block.kind.replace("_", "-")
        plan.add(block.nodes[0], f"raise-{name}", _raised(block, ones))


def _unfit(block: NormBlock) -> str | None:
    """Returns why no operator computes the block, or None."""
    x = block.input.shape
    if x is None:
        return "the rank of its input is not known"
    if block.kind not in _PER_CHANNEL and not _is_last(block) and len(block.axes) != 1:
        return f"it normalizes axes {list(block.axes)}, not the last ones"
    sizes = _sizes(block)
    if sizes is None:
        return "the size of what is normalized is known at run time only"
    for value in (*block.gain.values, *(() if block.shift is None else block.shift.values)):
        shape = static_shape(value.type)
        if shape is None or math.prod(shape) not in (1, math.prod(sizes)):
            return f"the constant `{value.name}` of shape {value.shape} is not {list(sizes)}"
    return None


def _is_last(block: NormBlock) -> bool:
    """Whether the normalized axes are the last ones, as the operators want them."""
    return block.axes == tuple(range(-len(block.axes), 0))


def _sizes(block: NormBlock) -> tuple[int, ...] | None:
    """Returns the sizes of gain and shift."""
    x = block.input.shape or ()
    dims = (x[1],) if block.kind in _PER_CHANNEL else tuple(x[axis] for axis in block.axes)
    return dims if all(isinstance(dim, int) for dim in dims) else None  # type: ignore[return-value]


def _raised(block: NormBlock, ones: _Ones) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        b = rw.builder(node)
        sizes = _sizes(block)
        if sizes is None:
            raise AssertionError("only norms of known sizes are planned")
        x = block.input
        if x.rank is None:
            raise AssertionError("only norms of a known rank are planned")
        perm = None
        if block.kind not in _PER_CHANNEL and not _is_last(block):  # channels of an image
            axis = block.axes[0] + x.rank
            perm = (*(i for i in range(x.rank) if i != axis), axis)
            x = b.op(reshaping.transpose, x, perm=perm)
        gain = _constant(b, block.gain, sizes, x.dtype, ones)
        attrs: dict[str, Any] = {"epsilon": block.epsilon}
        if block.kind == "group_norm":
            attrs["groups"] = block.groups or 1
        elif block.kind != "instance_norm":
            attrs["axis"] = -len(sizes)
        operands = [x, gain]
        shift = None if block.shift is None else _constant(b, block.shift, sizes, x.dtype, ones)
        if block.kind in _PER_CHANNEL and shift is None:
            shift = _constant(b, Scale(0.0), sizes, x.dtype, ones)
        if shift is not None and block.kind != "rms_norm":
            operands.append(shift)
        op = _OPS[block.kind]
        result = b.node(op, *operands, num_outputs=1, **attrs).output
        if shift is not None and block.kind == "rms_norm":
            result = b.op(arithmetic.add, result, shift)
        if perm is not None:
            result = b.op(reshaping.transpose, result, perm=tuple(np.argsort(perm).tolist()))
        rw.replace(node, result)

    return apply


def _constant(
    b: Builder, scale: Scale, sizes: tuple[int, ...], dtype: DType | None, ones: _Ones
) -> Value:
    """Builds `factor * product(values)` of the given sizes; cleanup folds it to one constant."""
    if dtype is None:
        raise AssertionError("norms of unknown element type are not recognized")
    if not scale.values:
        key = b.graph, sizes, dtype, scale.factor
        if key not in ones:
            # at the front: places are raised from the last to the first
            front = Builder(b.graph, b.graph.first)
            ones[key] = front.constant(np.full(sizes, scale.factor, np.float32), dtype)
        return ones[key]
    result: Value | None = None
    for value in scale.values:
        part = value
        if part.dtype is not dtype:
            part = b.op(cast.cast, part, to=dtype)
        if math.prod(static_shape(part.type) or ()) != 1 and part.shape != sizes:
            part = b.op(reshaping.reshape, part, shape=sizes)
        result = part if result is None else b.op(arithmetic.mul, result, part)
    if result is None:
        raise AssertionError("a scale without values is a number")
    if scale.factor != 1:
        result = b.op(arithmetic.mul, result, b.constant(scale.factor, dtype))
    if result.shape != sizes:  # one number for all positions
        result = b.op(arithmetic.mul, result, _constant(b, Scale(1.0), sizes, dtype, ones))
    return result
