"""Emitters of reductions, running sums, softmax and losses."""

from __future__ import annotations

from collections.abc import Callable

from regraft.backends.torch.emitter import Emit, EmitContext, Emitter
from regraft.backends.torch.library import reducing as library
from regraft.backends.torch.ops.params import (
    axis_of,
    int_param,
    narrowed,
    operand,
    sizes_param,
    widened,
)
from regraft.ir.ops import cumulative, loss, reduce, softmax
from regraft.ir.types import DType

Form = Callable[[EmitContext, str, str], str]
"""(context, operand, arguments `dim=…, keepdim=True`) -> the reduction."""


def _reduction(form: Form, unreduced: str = "{x}") -> Emitter:
    """Returns an emitter of a reduction.

    Args:
        form: Writes the reduction over at least one axis.
        unreduced: What is left of it over no axis.
    """

    def run(e: EmitContext) -> str:
        axes, x = reduce.reduced_axes(e.node), widened(e, 0)
        keepdims = e.attr("keepdims")
        if axes is None:
            given = sizes_param(e, "axes")
            call = e.helper(library.dims_of)
            dims = e.temp(f"{call}({x}, {given}, {e.attr('empty_is_none')})", "dims")
            reduced = form(e, x, f"dim={dims}, keepdim={keepdims}")
            if e.attr("empty_is_none"):
                reduced = f"{reduced} if {dims} else {unreduced.format(x=x)}"
            return narrowed(e, reduced)
        if not axes:
            return narrowed(e, unreduced.format(x=x))
        text = axes[0] if len(axes) == 1 else axes
        kept = ", keepdim=True" if keepdims else ""
        return narrowed(e, form(e, x, f"dim={text}{kept}"))

    return run


def _is_whole(e: EmitContext) -> bool:
    dtype = operand(e, 0).dtype
    return dtype is not None and dtype.is_integer


def _kind(e: EmitContext) -> str:
    """PyTorch sums narrow integers in int64; the result has the type of the operand."""
    dtype = operand(e, 0).dtype
    if dtype is None or not dtype.is_integer or dtype is DType.I64:
        return ""
    return f", dtype={e.dtype(dtype)}"


def _sum(e: EmitContext, x: str, how: str) -> str:
    return f"{x}.sum({how}{_kind(e)})"


def _mean(e: EmitContext, x: str, how: str) -> str:
    if _is_whole(e):
        return f"{e.helper(library.mean_of_integers)}({x}, {how})"
    return f"{x}.mean({how})"


def _extremum(name: str) -> Form:
    def form(e: EmitContext, x: str, how: str) -> str:
        shape = operand(e, 0).shape
        if shape is not None and 0 in shape:
            return f'{e.helper(library.extremum_of)}({x}, "{name}", {how})'
        return f"{x}.{name}({how})"

    return form


def _prod(e: EmitContext, x: str, how: str) -> str:
    if how.startswith(("dim=(", "dim=dims")):
        return f"{e.helper(library.product_over)}({x}, {how})"
    return f"{x}.prod({how}{_kind(e)})"


def _norm(order: int) -> Form:
    def form(e: EmitContext, x: str, how: str) -> str:
        dtype = operand(e, 0).dtype
        if dtype is not None and not dtype.is_float:
            return f"torch.linalg.vector_norm({x}.double(), {order}, {how}).to({e.dtype(dtype)})"
        return f"torch.linalg.vector_norm({x}, {order}, {how})"

    return form


def _through_floats(text: str) -> Form:
    """Returns a form that computes whole numbers in f64."""

    def form(e: EmitContext, x: str, how: str) -> str:
        dtype = operand(e, 0).dtype
        if dtype is not None and not dtype.is_float:
            wide = text.format(x=f"{x}.double()", how=how)
            return f"{wide}.to({e.dtype(dtype)})"
        return text.format(x=x, how=how)

    return form


def _running(name: str) -> Emitter:
    def run(e: EmitContext) -> str:
        x = operand(e, 0)
        axis = int_param(e, "axis")
        kind = _kind(e).removeprefix(", dtype=")
        if e.attr("exclusive") or e.attr("reverse"):
            call = e.helper(library.accumulate)
            how = f'"{name}", {axis}, {e.attr("exclusive")}, {e.attr("reverse")}'
            return narrowed(e, f"{call}({widened(e, 0)}, {how}){_cast(e, x.dtype)}")
        return narrowed(e, f"{widened(e, 0)}.{name}({axis}{kind and f', dtype={kind}'})")

    return run


def _cast(e: EmitContext, dtype: DType | None) -> str:
    small = dtype is not None and dtype.is_integer and dtype is not DType.I64
    return f".to({e.dtype(dtype)})" if small and dtype is not None else ""


def _along(text: str) -> Emitter:
    def run(e: EmitContext) -> str:
        return text.format(x=e.input(0), axis=e.attr("axis"))

    return run


def _emit_hardmax(e: EmitContext) -> str:
    axis = axis_of(operand(e, 0), e.attr("axis"))
    first = f"{e.input(0)}.argmax({axis}, keepdim=True)"
    return f"torch.zeros_like({e.input(0)}).scatter({axis}, {first}, 1)"


def _emit_nll_loss(e: EmitContext) -> str:
    ignore = e.attr("ignore_index")
    target = e.input(1)
    if operand(e, 1).dtype is not DType.I64:
        target = f"{target}.to(torch.int64)"
    arguments = [e.input(0), target]
    if e.optional(2) is not None:
        arguments.append(f"weight={e.optional(2)}")
    if ignore is not None:
        arguments.append(f"ignore_index={ignore}")
    if e.attr("reduction") != "mean":
        arguments.append(f'reduction="{e.attr("reduction")}"')
    return f"F.nll_loss({', '.join(arguments)})"


EMITS = (
    Emit(reduce.reduce_sum, _reduction(_sum)),
    Emit(reduce.reduce_mean, _reduction(_mean)),
    Emit(reduce.reduce_max, _reduction(_extremum("amax"))),
    Emit(reduce.reduce_min, _reduction(_extremum("amin"))),
    Emit(reduce.reduce_prod, _reduction(_prod)),
    Emit(reduce.reduce_l1, _reduction(_norm(1), "{x}.abs()")),
    Emit(reduce.reduce_l2, _reduction(_norm(2), "{x}.abs()")),
    Emit(reduce.reduce_log_sum, _reduction(_through_floats("{x}.sum({how}).log()"), "{x}.log()")),
    Emit(reduce.reduce_log_sum_exp, _reduction(_through_floats("torch.logsumexp({x}, {how})"))),
    Emit(
        reduce.reduce_sum_square,
        _reduction(lambda e, x, how: f"{x}.square().sum({how}{_kind(e)})", "{x}.square()"),
    ),
    Emit(cumulative.cumsum, _running("cumsum")),
    Emit(cumulative.cumprod, _running("cumprod")),
    Emit(softmax.softmax, _along("{x}.softmax({axis})")),
    Emit(softmax.log_softmax, _along("{x}.log_softmax({axis})")),
    Emit(softmax.hardmax, _emit_hardmax),
    Emit(loss.nll_loss, _emit_nll_loss),
)
