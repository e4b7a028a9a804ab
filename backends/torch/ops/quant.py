"""Emitters of quantization and products of quantized operands."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library import quantizing as library
from regraft.backends.torch.library.conversion import to_float4, to_float8_or_nan
from regraft.backends.torch.ops.cast import LARGEST
from regraft.backends.torch.ops.conv import known_pads, spatial_rank
from regraft.backends.torch.ops.params import operand
from regraft.ir.errors import UnsupportedError
from regraft.ir.ops import quant as ops
from regraft.ir.ops import quant_linalg as products
from regraft.ir.ops.quant import integer_range
from regraft.ir.ops.windows import windows_of
from regraft.ir.types import DType


def _emit_quantize(e: EmitContext) -> str:
    dtype = e.node.output.dtype or DType.U8
    x, scale, zero = e.input(0), e.input(1), e.optional(2)
    axis, block = e.attr("axis"), e.attr("block_size")
    precision = e.attr("precision") or operand(e, 1).dtype or DType.F32
    half = precision if precision in (DType.F16, DType.BF16) else None
    quotient = f"{e.helper(library.divide_by_scale)}({x}, {scale}, {axis}, {block}"
    quotient += ")" if half is None else f", {e.dtype(half)})"
    if dtype.is_integer:
        low, high = integer_range(dtype)
        call = e.helper(library.round_to)
        where = f"{zero}, {axis}, {block}" if zero is not None else "None, None, 0"
        return f"{call}({quotient}, {where}, {low}, {high}, {e.dtype(dtype)})"
    if dtype is DType.F4E2M1:
        return f"{e.helper(to_float4)}({quotient})"
    if e.attr("saturate") and dtype in LARGEST:
        quotient += f".clamp({-LARGEST[dtype]}, {LARGEST[dtype]})"
    elif dtype is DType.F8E4M3FN:
        return f"{e.helper(to_float8_or_nan)}({quotient})"
    return f"{quotient}.to({e.dtype(dtype)})"


def _emit_dequantize(e: EmitContext) -> str:
    dtype = e.node.output.dtype or DType.F32
    settings = f"{e.attr('axis')}, {e.attr('block_size')}, {e.dtype(dtype)}"
    return f"{e.helper(library.dequantize)}({', '.join(e.inputs)}, {settings})"


def _emit_lookup(e: EmitContext) -> str:
    settings = f"{e.attr('axis')}, {e.attr('block_size')}"
    return f"{e.helper(library.look_up)}({', '.join(e.inputs)}, {settings})"


def _emit_dynamic(e: EmitContext) -> str:
    return f"{e.helper(library.quantize_dynamically)}({e.input(0)})"


def _conv_settings(e: EmitContext) -> str:
    weight = operand(e, 1)
    pads = None
    if weight.shape is not None:
        pads = known_pads(e, windows_of(e.node.attrs, weight.shape[2:]))
    if pads is None:
        raise UnsupportedError(f"`{e.node.op.name}` with pads that depend on symbolic sizes")
    spatial_rank(e)
    return f"{e.attr('strides')}, {e.attr('dilations')}, {pads}, {e.attr('groups')}"


def _range(e: EmitContext) -> str:
    dtype = e.node.output.dtype or DType.U8
    low, high = integer_range(dtype)
    return f"{low}, {high}, {e.dtype(dtype)}"


def _emit_conv_integer(e: EmitContext) -> str:
    settings = _conv_settings(e)
    return f"{e.helper(library.convolve_integers)}({', '.join(e.inputs)}, {settings})"


def _emit_qlinear_conv(e: EmitContext) -> str:
    settings = f"{_conv_settings(e)}, {_range(e)}"
    return f"{e.helper(library.convolve_quantized)}({', '.join(e.inputs)}, {settings})"


EMITS = (
    Emit(ops.quantize, _emit_quantize),
    Emit(ops.dequantize, _emit_dequantize),
    Emit(ops.dynamic_quantize, _emit_dynamic),
    Emit(ops.lookup, _emit_lookup),
    Emit(
        products.matmul_integer,
        lambda e: f"{e.helper(library.multiply_integers)}({', '.join(e.inputs)})",
    ),
    Emit(
        products.qlinear_matmul,
        lambda e: f"{e.helper(library.multiply_quantized)}({', '.join(e.inputs)}, {_range(e)})",
    ),
    Emit(products.conv_integer, _emit_conv_integer),
    Emit(products.qlinear_conv, _emit_qlinear_conv),
)
