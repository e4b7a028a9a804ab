"""Emitters of normalizations."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.constants import constant_of
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Value
from regraft.ir.ops import norm as ops
from regraft.ir.ops import response_norm as response
from regraft.ir.types import DType

_STASH = {DType.F32: 1, DType.F16: 10, DType.F64: 11, DType.BF16: 16}


def _trailing(e: EmitContext) -> tuple[int, ...]:
    """Returns the normalized axes, counted from the end."""
    x, axis = e.node.inputs[0], e.node.attrs["axis"]
    if axis < 0:
        return tuple(range(axis, 0))
    if x is None or x.rank is None:
        raise UnsupportedError(
            f"`{e.name(e.node.output)}`: {e.node.op.name} over axes from {axis} on needs a known "
            f"rank below opset 17"
        )
    return tuple(range(axis - x.rank, 0))


def _mean(e: EmitContext, x: str, axes: tuple[int, ...]) -> str:
    if e.opset >= 18:
        return e.op("ReduceMean", x, e.ints(axes), keepdims=1)
    return e.op("ReduceMean", x, axes=axes, keepdims=1)


def _native(e: EmitContext, op_type: str) -> None:
    attrs = e.node.attrs
    stash = _STASH[attrs["compute_dtype"]]
    e.emit(op_type, e.inputs, axis=attrs["axis"], epsilon=attrs["epsilon"], stash_type=stash)


def _spelled_out(e: EmitContext, *, centered: bool) -> None:
    """Emits a norm in elementary operators, the statistics in at least f32."""
    node = e.node
    values = [None if value is None else e.name(value) for value in node.inputs]
    x, dtype = node.inputs[0], node.output.dtype
    wide = DType.F64 if dtype is DType.F64 else DType.F32
    if x is None or values[0] is None or dtype is None:
        raise UnsupportedError(
            f"`{e.name(node.output)}`: element type of {node.op.name} is unknown"
        )
    axes = _trailing(e)
    source = values[0] if dtype is wide else e.op("Cast", values[0], to=wide)
    if centered:
        mean = _mean(e, source, axes)
        source = e.op("Sub", source, mean)
    power = _mean(e, e.op("Mul", source, source), axes)
    if node.attrs["epsilon"]:
        power = e.op("Add", power, e.const(node.attrs["epsilon"], wide.numpy))
    std = e.op("Sqrt", power)
    normal = e.op("Div", source, std)
    if dtype is not wide:
        normal = e.op("Cast", normal, to=dtype)
    bias = values[2] if len(values) > 2 else None
    steps = [("Mul", values[1])] if not _is_one(node.inputs[1]) else []
    if bias:
        steps.append(("Add", bias))
    for idx, (op_type, operand) in enumerate(steps):
        target = e.name(node.output) if idx == len(steps) - 1 else e.temp("scaled")
        normal = e.emit(op_type, [normal, operand or ""], [target])
    if not steps:
        e.emit("Identity", [normal], [e.name(node.output)])
    statistics: list[tuple[str, str]] = [("Reciprocal", std)]
    if centered:
        statistics.insert(0, ("Identity", mean))
    for value, (op_type, name) in zip(node.outputs[1:], statistics, strict=False):
        if value.num_uses:
            e.emit("Cast", [e.op(op_type, name)], [e.name(value)], to=value.dtype)


def _is_one(value: Value | None) -> bool:
    """Returns whether a gain is the constant one."""
    gain = constant_of(value, 1 << 16)
    return gain is not None and bool((gain == 1).all())


def _emit_rms_norm_23(e: EmitContext) -> None:
    if any(value.num_uses for value in e.node.outputs[1:]):
        _spelled_out(e, centered=False)
    else:
        _native(e, "RMSNormalization")


def _emit_group_norm_13(e: EmitContext) -> None:
    value = e.node.inputs[0]
    if value is None or value.rank is None or value.dtype is None:
        raise UnsupportedError(
            f"`{e.name(e.node.output)}`: group_norm of an unknown rank or element type needs "
            f"opset 21"
        )
    e.inline()


EMITS: tuple[Emit, ...] = (
    Emit(ops.batch_norm, {13: direct("BatchNormalization", "epsilon")}),
    Emit(ops.instance_norm, {13: direct("InstanceNormalization", "epsilon")}),
    Emit(
        ops.group_norm,
        {
            13: _emit_group_norm_13,
            21: direct("GroupNormalization", "epsilon", num_groups="groups"),
        },
        inlined=lambda node, opset, profile: opset < 21,
    ),
    Emit(
        ops.layer_norm,
        {
            13: lambda e: _spelled_out(e, centered=True),
            17: lambda e: _native(e, "LayerNormalization"),
        },
        raised={"ort-cpu": 17, "ort-cuda": 17},
    ),
    Emit(
        ops.rms_norm,
        {13: lambda e: _spelled_out(e, centered=False), 23: _emit_rms_norm_23},
        raised={"ort-cpu": 23, "ort-cuda": 23},
    ),
    Emit(response.local_response_norm, {13: direct("LRN", "size", "alpha", "beta", "bias")}),
    Emit(response.lp_norm, {13: direct("LpNormalization", "axis", "p")}),
    Emit(response.mean_variance_norm, {13: direct("MeanVarianceNormalization", "axes")}),
)
