"""Emitters of tensors made from sizes, and of triangles."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library.filling import count_steps, diagonal_of
from regraft.backends.torch.ops.params import float_text, int_param, sizes_param, static_sizes
from regraft.ir.ops import fill as ops
from regraft.ir.ops import sizes
from regraft.ir.types import DType


def _emit_range(e: EmitContext) -> str:
    dtype = e.node.output.dtype or DType.I64
    names = ("start", "limit", "delta")
    static = [static_sizes(e, name) for name in names]
    kind = "" if dtype is DType.I64 else f", dtype={e.dtype(dtype)}"
    known = [item for item in static if item is not None]
    if len(known) == len(names):
        start, limit, delta = (e.size(item[0]) for item in known)
        first = "" if (start, delta) == ("0", "1") else f"{start}, "
        step = "" if delta == "1" else f", {delta}"
        return f"torch.arange({first}{limit}{step}{kind}, device={e.device})"
    if dtype.is_integer:
        parts = ", ".join(str(int_param(e, name)) for name in names)
        return f"torch.arange({parts}{kind}, device={e.device})"
    operands = [e.node.operand(name) for name in names]
    whole = zip(operands, static, names, strict=True)
    texts = [
        f"torch.tensor({int_param(e, name)}, dtype={e.dtype(dtype)}, device={e.device})"
        if value is None or item is not None
        else f"{e.name(value)}.reshape(())"
        for value, item, name in whole
    ]
    return f"{e.helper(count_steps)}({', '.join(texts)})"


def _emit_constant_of_shape(e: EmitContext) -> str:
    value = e.attr("value").reshape(())
    dtype = e.node.output.dtype or DType.F32
    shape = sizes_param(e, "shape")
    where = f"dtype={e.dtype(dtype)}, device={e.device}"
    if dtype.is_float:
        number = float(value)
        if number in (0, 1):
            return f"torch.{'ones' if number else 'zeros'}({shape}, {where})"
        return f"torch.full({shape}, {float_text(number)}, {where})"
    return f"torch.full({shape}, {value.item()!r}, {where})"


def _emit_eye_like(e: EmitContext) -> str:
    dtype = e.node.output.dtype or DType.F32
    return f"{e.helper(diagonal_of)}({e.input(0)}, {e.attr('k')}, {e.dtype(dtype)})"


def _emit_trilu(e: EmitContext) -> str:
    k = int_param(e, "k")
    name = "triu" if e.attr("upper") else "tril"
    return f"{e.input(0)}.{name}({'' if k in (None, '0') else k})"


def _emit_shape(e: EmitContext) -> str:
    start, end = e.attr("start"), e.attr("end")
    cut = "" if start == 0 and end is None else f"[{start or ''}:{'' if end is None else end}]"
    return f"torch.tensor({e.input(0)}.shape{cut}, dtype=torch.int64, device={e.device})"


def _emit_size(e: EmitContext) -> str:
    return f"torch.tensor({e.input(0)}.numel(), device={e.device})"


EMITS = (
    Emit(ops.range_, _emit_range),
    Emit(ops.constant_of_shape, _emit_constant_of_shape),
    Emit(ops.eye_like, _emit_eye_like),
    Emit(ops.trilu, _emit_trilu),
    Emit(sizes.shape, _emit_shape),
    Emit(sizes.size, _emit_size),
)
