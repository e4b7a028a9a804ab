"""Emitters of element types: cast, bitcast; and identity."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library.conversion import (
    bits_of,
    from_bits,
    to_float4,
    to_float8_or_nan,
    to_power_of_two,
    wrap_bits,
)
from regraft.backends.torch.ops.params import operand
from regraft.ir.convert import TINY_FLOATS
from regraft.ir.ops import cast as ops
from regraft.ir.types import DType

_PACKED = frozenset({DType.I4, DType.I2, DType.U4, DType.U2, DType.F4E2M1})
LARGEST = {
    DType.F8E4M3FN: 448.0,
    DType.F8E4M3FNUZ: 240.0,
    DType.F8E5M2: 57344.0,
    DType.F8E5M2FNUZ: 57344.0,
}


def _emit_cast(e: EmitContext) -> str:
    to, x = e.attr("to"), operand(e, 0)
    source, name = x.dtype, e.input(0)
    if source is to:
        return name
    if source in TINY_FLOATS:
        name = f"{name}.float()"
    if to is DType.F8E8M0:
        call = e.helper(to_power_of_two)
        return f"{call}({name}, {e.attr('saturate')}, {e.attr('round_mode')!r})"
    if to is DType.F4E2M1:
        return f"{e.helper(to_float4)}({name})"
    if to in (DType.I4, DType.I2, DType.U4, DType.U2):
        is_signed = not to.value.startswith("u")
        return f"{e.helper(wrap_bits)}({name}, {to.bits}, {is_signed}).to({e.dtype(to)})"
    if to in LARGEST and e.attr("saturate"):
        limit = LARGEST[to]
        wide = name if source is not None and source.is_float else f"{name}.float()"
        return f"{wide}.clamp({-limit}, {limit}).to({e.dtype(to)})"
    if to is DType.F8E4M3FN and not e.attr("saturate"):
        return f"{e.helper(to_float8_or_nan)}({name})"
    if to.is_integer and to.bits < 32 and (source is None or source.is_float):
        return f"{name}.to(torch.int64).to({e.dtype(to)})"  # a negative number wraps
    return f"{name}.to({e.dtype(to)})"


def _emit_bitcast(e: EmitContext) -> str:
    to, source, name = e.attr("to"), operand(e, 0).dtype, e.input(0)
    if source is to:
        return name
    if to not in _PACKED and source not in _PACKED:
        return f"{name}.view({e.dtype(to)})"
    codes = f"{e.helper(bits_of)}({name}, {to.bits}, {source is DType.F4E2M1})"
    kind = "float" if to is DType.F4E2M1 else "unsigned" if to.value[0] == "u" else "signed"
    return f"{e.helper(from_bits)}({codes}, {to.bits}, {kind!r})"


EMITS = (
    Emit(ops.cast, _emit_cast),
    Emit(ops.bitcast, _emit_bitcast),
    Emit(ops.identity, lambda e: e.input(0)),
    Emit(ops.stop_gradient, lambda e: f"{e.input(0)}.detach()"),
)
