"""Emitters of tensors made from sizes and of running sums."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, Emitter, direct
from regraft.ir.ops import cumulative, fill
from regraft.ir.types import DType

_HALF = frozenset({DType.F16, DType.BF16})


def _range(e: EmitContext) -> None:
    dtype = e.node.output.dtype
    names = [_range_param(e, name, dtype) for name in ("start", "limit", "delta")]
    if dtype in _HALF:
        # Range of halves came with opset 27; it counts in f32
        wide = e.op("Range", *(e.op("Cast", name, to=DType.F32) for name in names))
        e.emit("Cast", [wide], to=dtype)
        return
    e.emit("Range", names)


def _range_param(e: EmitContext, name: str, dtype: DType | None) -> str:
    static = e.node.attrs[name]
    if static is None:
        return e.name(e.node.operand(name))
    if dtype is None:
        raise AssertionError("a static range has a dtype")
    if isinstance(static, int):
        return e.const(static, dtype.numpy)
    sizes = e.ints(static)
    return sizes if dtype is DType.I64 else e.op("Cast", sizes, to=dtype)


def _constant_of_shape(e: EmitContext) -> None:
    e.emit("ConstantOfShape", [e.param("shape")], value=e.node.attrs["value"])


def _trilu(e: EmitContext) -> None:
    has_k = e.node.attrs["k"] is not None or e.node.operand("k") is not None
    names = [e.name(e.node.inputs[0]), *([e.param("k")] if has_k else [])]
    e.emit("Trilu", names, upper=int(e.node.attrs["upper"]))


def _cumulative(op_type: str) -> Emitter:
    def run(e: EmitContext) -> None:
        e.emit(
            op_type, [e.name(e.node.inputs[0]), e.param("axis")],
            exclusive=int(e.node.attrs["exclusive"]), reverse=int(e.node.attrs["reverse"]),
        )  # fmt: skip

    return run


EMITS: tuple[Emit, ...] = (
    Emit(fill.range_, {13: _range}),
    Emit(fill.constant_of_shape, {13: _constant_of_shape}),
    Emit(fill.eye_like, {13: direct("EyeLike", "dtype", "k")}),
    Emit(fill.trilu, {14: _trilu}),
    Emit(cumulative.cumsum, {13: _cumulative("CumSum")}),
    Emit(cumulative.cumprod, {26: _cumulative("CumProd")}),
)
