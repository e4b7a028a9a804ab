"""Emitters of gather and scatter."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library import indexing as library
from regraft.backends.torch.ops.params import axis_of, operand
from regraft.ir.constants import constant_of, weight
from regraft.ir.graph import Value
from regraft.ir.ops import gathering, scattering, selecting
from regraft.ir.types import DType

_MAX_BYTES = 1 << 22
_FOUND = frozenset({selecting.top_k, selecting.arg_max, selecting.arg_min})


def is_from_zero(value: Value) -> bool:
    """Returns whether an index is known to count from the front."""
    if value.producer is not None and value.producer.op in _FOUND:
        return True
    array = constant_of(value, _MAX_BYTES)
    return array is not None and bool((array >= 0).all())


def _emit_gather(e: EmitContext) -> str:
    x, indices, axis = operand(e, 0), operand(e, 1), axis_of(operand(e, 0), e.attr("axis"))
    name = e.input(0)
    if indices.rank == 0:
        number = e.graph.number(indices)
        if number is not None and axis >= 0:
            return f"{name}[{':, ' * axis}{number}]"
        return f"{e.helper(library.take_one)}({name}, {e.input(1)}, {axis})"
    if _is_table(x) and axis == 0:
        array = constant_of(indices, _MAX_BYTES)
        if array is None or bool((array >= 0).all()):
            return f"F.embedding({e.input(1)}, {name})"
    if axis < 0 or indices.rank is None:
        return f"{e.helper(library.take_along)}({name}, {e.input(1)}, {axis})"
    return f"{name}[{':, ' * axis}{e.input(1)}]"


def _is_table(x: Value) -> bool:
    is_float = x.dtype is not None and x.dtype.is_float and x.dtype.bits >= 16
    return is_float and x.rank == 2 and x.producer is not None and x.producer.op is weight


def _index(e: EmitContext, idx: int) -> str:
    """Returns an index in the type that PyTorch's gathers take."""
    value = operand(e, idx)
    return e.input(idx) if value.dtype is DType.I64 else f"{e.input(idx)}.to(torch.int64)"


def _along(e: EmitContext) -> str:
    """Returns an index along an axis, counted from the front."""
    if is_from_zero(operand(e, 1)):
        return _index(e, 1)
    return f"{e.helper(library.from_front)}({_index(e, 1)}, {e.input(0)}.shape[{e.attr('axis')}])"


def _emit_gather_elements(e: EmitContext) -> str:
    return f"torch.gather({e.input(0)}, {e.attr('axis')}, {_along(e)})"


def _emit_gather_nd(e: EmitContext) -> str:
    return f"{e.helper(library.gather_nd)}({e.input(0)}, {_index(e, 1)}, {e.attr('batch_dims')})"


_REDUCTIONS = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


def _emit_scatter_elements(e: EmitContext) -> str:
    reduction, arguments = e.attr("reduction"), f"{e.attr('axis')}, {_along(e)}, {e.input(2)}"
    if reduction == "none":
        return f"{e.input(0)}.scatter({arguments})"
    if reduction == "add":
        return f"{e.input(0)}.scatter_add({arguments})"
    return f'{e.input(0)}.scatter_reduce({arguments}, reduce="{_REDUCTIONS[reduction]}")'


def _emit_scatter_nd(e: EmitContext) -> str:
    reduction = _REDUCTIONS.get(e.attr("reduction"))
    arguments = f"{e.input(0)}, {_index(e, 1)}, {e.input(2)}, {reduction!r}"
    return f"{e.helper(library.scatter_nd)}({arguments})"


def _emit_tensor_scatter(e: EmitContext) -> str:
    arguments = ", ".join(e.inputs)
    axis, circular = e.attr("axis"), e.attr("mode") == "circular"
    return f"{e.helper(library.write_rows)}({arguments}, {axis}, {circular})"


EMITS = (
    Emit(gathering.gather, _emit_gather),
    Emit(gathering.gather_elements, _emit_gather_elements),
    Emit(gathering.gather_nd, _emit_gather_nd),
    Emit(scattering.scatter_elements, _emit_scatter_elements),
    Emit(scattering.scatter_nd, _emit_scatter_nd),
    Emit(scattering.tensor_scatter, _emit_tensor_scatter),
)
