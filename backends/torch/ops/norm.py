"""Emitters of normalization."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext, Emitted
from regraft.backends.torch.library import normalizing as library
from regraft.backends.torch.ops.params import axis_of, operand
from regraft.ir.constants import is_constant
from regraft.ir.graph import Value
from regraft.ir.ops import norm as ops
from regraft.ir.ops import response_norm
from regraft.ir.types import DType


def _eps(e: EmitContext) -> str:
    return f"eps={e.attr('epsilon')!r}"


def _emit_batch_norm(e: EmitContext) -> str:
    x, scale, bias, mean, var = e.inputs
    mixed = any(v is not None and v.dtype is not operand(e, 0).dtype for v in e.node.inputs)
    # PyTorch's own takes no gradient through statistics that are computed, as those of the input
    if mixed or not all(is_constant(v) for v in e.node.inputs[3:]):
        return f"{e.helper(library.scale_channels)}({', '.join(e.inputs)}, {_eps(e)})"
    return f"F.batch_norm({x}, {mean}, {var}, {scale}, {bias}, {_eps(e)})"


def _emit_instance_norm(e: EmitContext) -> str:
    x, scale, bias = e.inputs
    shape = operand(e, 0).shape
    if shape is not None and any(isinstance(dim, int) and dim > 1 for dim in shape[2:]):
        return f"F.instance_norm({x}, weight={scale}, bias={bias}, {_eps(e)})"
    # PyTorch's instance norm refuses planes of one element
    return f"torch.group_norm({x}, {x}.shape[1], {scale}, {bias}, {_eps(e)})"


def _emit_group_norm(e: EmitContext) -> str:
    x, scale, bias = e.inputs
    return f"torch.group_norm({x}, {e.attr('groups')}, {scale}, {bias}, {_eps(e)})"


def _has_shape_of(gain: Value | None, x: Value, axis: int) -> bool:
    if gain is None:
        return True
    return (
        x.shape is not None
        and gain.shape is not None
        and gain.shape == x.shape[axis:]
        and gain.dtype is x.dtype
    )


def _normal_shape(e: EmitContext, axis: int) -> str:
    x = operand(e, 0)
    if x.shape is not None and all(isinstance(dim, int) for dim in x.shape[axis:]):
        return e.sizes(x.shape[axis:])
    return f"{e.input(0)}.shape[{axis}:]"


def _emit_layer_norm(e: EmitContext) -> Emitted:
    x, axis = operand(e, 0), axis_of(operand(e, 0), e.attr("axis"))
    if any(map(e.graph.is_wanted, e.node.outputs[1:])):
        call = e.helper(library.layer_norm_with_statistics)
        wide = e.dtype(e.attr("compute_dtype"))
        found = e.temp(f"{call}({', '.join(e.inputs)}, {axis}, {_eps(e)}, wide={wide})", "normal")
        return [f"{found}[{i}]" for i in range(len(e.node.outputs))]
    shape = _normal_shape(e, axis)
    if all(_has_shape_of(value, x, axis) for value in e.node.inputs[1:]):
        bias = "" if e.optional(2) is None else f", {e.optional(2)}"
        text = f"F.layer_norm({e.input(0)}, {shape}, {e.input(1)}{bias}, {_eps(e)})"
    else:
        text = f"F.layer_norm({e.input(0)}, {shape}, {_eps(e)}) * {e.input(1)}"
        text += "" if e.optional(2) is None else f" + {e.optional(2)}"
        text = _in_dtype(e, text)
    return [text, *("None" for _ in e.node.outputs[1:])]


def _in_dtype(e: EmitContext, text: str) -> str:
    """Returns a product with gains of another element type in that of x."""
    dtype = operand(e, 0).dtype
    if dtype is None or all(v is None or v.dtype is dtype for v in e.node.inputs):
        return text
    return f"({text}).to({e.dtype(dtype)})"


def _emit_rms_norm(e: EmitContext) -> Emitted:
    x, axis = operand(e, 0), axis_of(operand(e, 0), e.attr("axis"))
    if any(map(e.graph.is_wanted, e.node.outputs[1:])):
        call = e.helper(library.rms_norm_with_statistics)
        wide = e.dtype(e.attr("compute_dtype"))
        found = e.temp(f"{call}({', '.join(e.inputs)}, {axis}, {_eps(e)}, wide={wide})", "normal")
        return [f"{found}[{i}]" for i in range(len(e.node.outputs))]
    shape = _normal_shape(e, axis)
    if _has_shape_of(e.node.inputs[1], x, axis):
        text = f"F.rms_norm({e.input(0)}, {shape}, {e.input(1)}, {_eps(e)})"
    else:
        text = _in_dtype(e, f"F.rms_norm({e.input(0)}, {shape}, {_eps(e)}) * {e.input(1)}")
    return [text, *("None" for _ in e.node.outputs[1:])]


def _emit_local_response(e: EmitContext) -> str:
    size = e.attr("size")
    if size % 2:  # PyTorch's even neighbourhoods lean the other way
        values = f"alpha={e.attr('alpha')!r}, beta={e.attr('beta')!r}, k={e.attr('bias')!r}"
        return f"F.local_response_norm({e.input(0)}, {size}, {values})"
    values = f"{e.attr('alpha')!r}, {e.attr('beta')!r}, {e.attr('bias')!r}"
    return f"{e.helper(library.local_response)}({e.input(0)}, {size}, {values})"


def _emit_lp_norm(e: EmitContext) -> str:
    # 0 / 0 is 0: the least norm is one that no other vector has
    least = {DType.F64: 1e-300, DType.F32: 1e-37, DType.BF16: 1e-37}
    dtype = operand(e, 0).dtype or DType.F32
    eps = least.get(dtype, 1e-7)
    return f"F.normalize({e.input(0)}, p={e.attr('p')}, dim={e.attr('axis')}, eps={eps!r})"


def _emit_mean_variance(e: EmitContext) -> str:
    return f"{e.helper(library.standardize)}({e.input(0)}, {e.attr('axes')})"


EMITS = (
    Emit(ops.batch_norm, _emit_batch_norm),
    Emit(ops.instance_norm, _emit_instance_norm),
    Emit(ops.group_norm, _emit_group_norm),
    Emit(ops.layer_norm, _emit_layer_norm),
    Emit(ops.rms_norm, _emit_rms_norm),
    Emit(response_norm.local_response_norm, _emit_local_response),
    Emit(response_norm.lp_norm, _emit_lp_norm),
    Emit(response_norm.mean_variance_norm, _emit_mean_variance),
)
