"""Emitters of positions chosen by value."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext, Emitted
from regraft.backends.torch.library import selecting as library
from regraft.backends.torch.ops.params import int_param, narrowed, operand, widened
from regraft.ir.constants import constant_of
from regraft.ir.ops import selecting as ops
from regraft.ir.types import DType


def _emit_top_k(e: EmitContext) -> Emitted:
    call = f"{e.helper(library.first_of_sorted)}({widened(e, 0)}, {int_param(e, 'k')}, "
    call += f"{e.attr('axis')}, {e.attr('largest')})"
    values = e.node.outputs[0]
    if narrowed(e, "x") == "x":
        return call
    pair = e.temp(call, "pair")
    return [f"{pair}[0].to({e.dtype(values.dtype or DType.I64)})", f"{pair}[1]"]


def _emit_arg(e: EmitContext) -> str:
    name = "argmax" if e.node.op is ops.arg_max else "argmin"
    axis, keepdims, x = e.attr("axis"), e.attr("keepdims"), widened(e, 0)
    kept = ", keepdim=True" if keepdims else ""
    if e.attr("select_last_index"):
        return f"{x}.shape[{axis}] - 1 - {x}.flip({axis}).{name}({axis}{kept})"
    return f"{x}.{name}({axis}{kept})"


def _emit_one_hot(e: EmitContext) -> str:
    indices, values = operand(e, 0), operand(e, 2)
    array = constant_of(values, 16)
    dtype = e.dtype(values.dtype or DType.F32)
    name = e.input(0) if indices.dtype is DType.I64 else f"{e.input(0)}.to(torch.int64)"
    on_off = "" if array is None else ", ".join(repr(item) for item in array.tolist())
    if array is None or "inf" in on_off or "nan" in on_off:
        on_off = f"{e.input(2)}[0], {e.input(2)}[1]"
    call = e.helper(library.mark_positions)
    return f"{call}({name}, {int_param(e, 'depth')}, {e.attr('axis')}, {on_off}, {dtype})"


def _emit_compress(e: EmitContext) -> str:
    return f"{e.helper(library.keep_where)}({e.input(0)}, {e.input(1)}, {e.attr('axis')})"


def _emit_non_zero(e: EmitContext) -> str:
    x = f"{e.input(0)}.reshape(1)" if operand(e, 0).rank == 0 else widened(e, 0)
    return f"{x}.nonzero().t()"


def _emit_unique(e: EmitContext) -> Emitted:
    call = e.helper(library.unique_of)
    found = f"{call}({widened(e, 0)}, {e.attr('axis')}, {e.attr('sorted')})"
    names = e.temp(found, "found")
    first = narrowed(e, f"{names}[0]")
    return [first, *(f"{names}[{i}]" for i in range(1, len(e.node.outputs)))]


EMITS = (
    Emit(ops.top_k, _emit_top_k),
    Emit(ops.arg_max, _emit_arg),
    Emit(ops.arg_min, _emit_arg),
    Emit(ops.one_hot, _emit_one_hot),
    Emit(ops.compress, _emit_compress),
    Emit(ops.non_zero, _emit_non_zero),
    Emit(ops.unique, _emit_unique),
)
