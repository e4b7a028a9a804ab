"""Emitters of casts and identity."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.graph import Node
from regraft.ir.ops.cast import bitcast, cast, identity, stop_gradient
from regraft.ir.types import DType, OptionalType, SequenceType

_F8 = frozenset({DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ})

# first opset in which Cast and Identity take the element type
_SINCE: dict[DType | None, int] = {
    **dict.fromkeys(_F8, 19),
    DType.I4: 21,
    DType.U4: 21,
    DType.F4E2M1: 23,
    DType.F8E8M0: 24,
    DType.I2: 25,
    DType.U2: 25,
}


def _cast(e: EmitContext) -> None:
    attrs = e.node.attrs
    to = attrs["to"]
    e.emit(
        "Cast", e.inputs, to=to,
        saturate=int(attrs["saturate"]) if to in _F8 or to is DType.F8E8M0 else None,
        round_mode=attrs["round_mode"] if to is DType.F8E8M0 else None,
    )  # fmt: skip


def _cast_opset(node: Node) -> int:
    x = node.inputs[0]
    return max(_SINCE.get(node.attrs["to"], 13), _SINCE.get(x.dtype, 13) if x is not None else 13)


def _identity_opset(node: Node) -> int:
    match node.output.type:
        case SequenceType():
            return 14
        case OptionalType():
            return 16
        case _:
            return _SINCE.get(node.output.dtype, 13)


EMITS: tuple[Emit, ...] = (
    Emit(cast, {13: _cast}, _cast_opset),
    Emit(bitcast, {26: direct("BitCast", "to")}),
    Emit(identity, {13: direct("Identity")}, _identity_opset),
    Emit(stop_gradient, {13: direct("Identity")}, _identity_opset),
)
