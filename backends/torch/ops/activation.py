"""Emitters of activation functions."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library.activations import shrink_tensor
from regraft.backends.torch.ops.arithmetic import unary
from regraft.backends.torch.ops.params import float_text, operand
from regraft.ir.graph import Value
from regraft.ir.ops import activation as ops
from regraft.ir.types import DType

_SIXTH = 1 / 6
_F64_LINEAR_FROM = 40  # exp(-40) is lost beside 40 in an f64; PyTorch's default suits an f32


def _emit_prelu(e: EmitContext) -> str:
    x, slope = operand(e, 0), operand(e, 1)
    if _is_per_channel(x, slope):
        flat = e.input(1) if slope.rank == 1 else f"{e.input(1)}.reshape(-1)"
        return f"F.prelu({e.input(0)}, {flat})"
    return f"torch.where({e.input(0)} < 0, {e.input(1)} * {e.input(0)}, {e.input(0)})"


def _is_per_channel(x: Value, slope: Value) -> bool:
    """Whether a slope has one element, or one per position of the second axis of x."""
    shape, full = slope.shape, x.shape
    if shape is None or full is None or x.dtype is None or not x.dtype.is_float:
        return False
    if all(size == 1 for size in shape):
        return True
    aligned = (1,) * (len(full) - len(shape)) + shape
    return len(full) > 1 and all(
        size == full[1] if axis == 1 else size == 1 for axis, size in enumerate(aligned)
    )


def _emit_selu(e: EmitContext) -> str:
    alpha, gamma = e.attr("alpha"), e.attr("gamma")
    # PyTorch's constants have more digits than ONNX's, which an f64 shows
    is_usual = (alpha, gamma) == (ops.SELU_ALPHA, ops.SELU_GAMMA)
    if is_usual and operand(e, 0).dtype is not DType.F64:
        return f"F.selu({e.input(0)})"
    return f"{gamma!r} * F.elu({e.input(0)}, {alpha!r})"


def _emit_hard_sigmoid(e: EmitContext) -> str:
    alpha, beta = e.attr("alpha"), e.attr("beta")
    if abs(alpha - _SIXTH) < 1e-8 and beta == 0.5:  # the nearest f32 of 1/6
        return f"F.hardsigmoid({e.input(0)})"
    return f"({alpha!r} * {e.input(0)} + {beta!r}).clamp(0, 1)"


def _emit_swish(e: EmitContext) -> str:
    alpha, x = e.attr("alpha"), e.input(0)
    return f"F.silu({x})" if alpha == 1 else f"{x} * torch.sigmoid({alpha!r} * {x})"


def _emit_gelu(e: EmitContext) -> str:
    return (
        f'F.gelu({e.input(0)}, approximate="tanh")' if e.attr("tanh") else f"F.gelu({e.input(0)})"
    )


def _emit_softplus(e: EmitContext) -> str:
    if operand(e, 0).dtype is DType.F64:
        return f"F.softplus({e.input(0)}, threshold={_F64_LINEAR_FROM})"
    return f"F.softplus({e.input(0)})"


def _emit_shrink(e: EmitContext) -> str:
    lambd, bias, dtype = e.attr("lambd"), e.attr("bias"), operand(e, 0).dtype
    if dtype is not None and dtype.is_float and lambd >= 0 and bias in (0, lambd):
        return f"F.{'soft' if bias else 'hard'}shrink({e.input(0)}, {lambd!r})"
    return f"{e.helper(shrink_tensor)}({e.input(0)}, {lambd!r}, {bias!r})"


def _emit_clip(e: EmitContext) -> str:
    x = operand(e, 0)
    bounds = {}
    for name in ("min", "max"):
        static, value = e.attr(name), e.node.operand(name)
        if static is not None:
            whole = x.dtype is not None and x.dtype.is_integer
            bounds[name] = str(int(static)) if whole else float_text(static)
        elif value is not None:
            number = e.graph.number(value)
            bounds[name] = number or (
                e.name(value) if value.rank == 0 else f"{e.name(value)}.reshape(())"
            )
    if len({e.node.attrs[name] is None for name in bounds}) == 2:  # numbers and tensors do not mix
        return f"{e.input(0)}.clamp(min={bounds['min']}).clamp(max={bounds['max']})"
    if len(bounds) == 2:
        return f"{e.input(0)}.clamp({bounds['min']}, {bounds['max']})"
    arguments = ", ".join(f"{name}={bound}" for name, bound in bounds.items())
    return f"{e.input(0)}.clamp({arguments})" if arguments else e.input(0)


EMITS = (
    Emit(ops.relu, unary("F.relu({x})")),
    Emit(ops.leaky_relu, lambda e: f"F.leaky_relu({e.input(0)}, {e.attr('alpha')!r})"),
    Emit(ops.thresholded_relu, lambda e: f"F.threshold({e.input(0)}, {e.attr('alpha')!r}, 0)"),
    Emit(ops.prelu, _emit_prelu),
    Emit(ops.elu, lambda e: f"F.elu({e.input(0)}, {e.attr('alpha')!r})"),
    Emit(ops.selu, _emit_selu),
    Emit(ops.celu, lambda e: f"F.celu({e.input(0)}, {e.attr('alpha')!r})"),
    Emit(ops.sigmoid, unary("torch.sigmoid({x})")),
    Emit(ops.hard_sigmoid, _emit_hard_sigmoid),
    Emit(ops.hard_swish, unary("F.hardswish({x})")),
    Emit(ops.swish, _emit_swish),
    Emit(ops.mish, unary("F.mish({x})")),
    Emit(ops.gelu, _emit_gelu),
    Emit(ops.softplus, _emit_softplus),
    Emit(ops.softsign, unary("F.softsign({x})")),
    Emit(ops.shrink, _emit_shrink),
    Emit(ops.clip, _emit_clip),
)
