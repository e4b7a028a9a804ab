"""Parameters as Python expressions: static ones written out, others read from their operand."""

from __future__ import annotations

from typing import Any

from regraft.backends.torch.emitter import EmitContext
from regraft.ir.dims import Dim, DimLike
from regraft.ir.graph import Value
from regraft.ir.types import DType

WIDE_UNSIGNED = frozenset({DType.U16, DType.U32, DType.U64})
"""Types that PyTorch stores but hardly computes with: arithmetic goes through int64."""


def static_sizes(e: EmitContext, name: str) -> tuple[DimLike, ...] | None:
    """Returns a static parameter as a tuple; None where only its operand shows what it is."""
    static = e.node.static(name)
    if static is None:
        return None
    sizes = static if isinstance(static, tuple) else (static,)
    # without an operand the sizes are written: a part asks for symbols that no value shows
    is_written = e.node.operand(name) is None
    return sizes if is_written or all(e.graph.sizes.can_read(dim) for dim in sizes) else None


def static_ints(e: EmitContext, name: str) -> tuple[int, ...] | None:
    """Returns a static parameter of plain integers as a tuple, or None."""
    static = e.node.static(name)
    values = static if isinstance(static, tuple) else (static,)
    if static is None or any(isinstance(value, Dim) for value in values):
        return None
    return values


def sizes_param(e: EmitContext, name: str) -> str | None:
    """Returns an expression of a tuple or list of ints, None when the parameter is absent."""
    static = static_sizes(e, name)
    if static is not None:
        return e.sizes(static)
    value = e.node.operand(name)
    if value is None:
        return None
    read = f"{e.name(value)}.tolist()"
    return read if value.rank == 1 else f"{e.name(value)}.reshape(-1).tolist()"


def int_param(e: EmitContext, name: str) -> str | None:
    """Returns an expression of an int, None when the parameter is absent."""
    static = static_sizes(e, name)
    if static is not None:
        return e.size(static[0])
    value = e.node.operand(name)
    return None if value is None else f"int({e.name(value)})"


def axis_of(value: Value, axis: int) -> int:
    """Returns a non-negative axis where the rank is known."""
    return axis % value.rank if value.rank else axis


def operand(e: EmitContext, idx: int) -> Value:
    """Returns an operand that must be present."""
    value = e.node.inputs[idx]
    if value is None:
        raise AssertionError(f"operand {idx} of `{e.node.op.name}` is absent")
    return value


def float_text(value: float) -> str:
    """Returns a Python expression of a float, which may be infinite."""
    number = float(value)
    text = repr(number)
    return f'float("{text}")' if text in ("inf", "-inf", "nan") else text


def widened(e: EmitContext, idx: int) -> str:
    """Returns an operand in a type that PyTorch computes with."""
    value = operand(e, idx)
    return f"{e.name(value)}.to(torch.int64)" if value.dtype in WIDE_UNSIGNED else e.name(value)


def narrowed(e: EmitContext, expression: str, result: int = 0) -> str:
    """Returns a result of widened operands in the declared type."""
    dtype = e.node.outputs[result].dtype
    if dtype not in WIDE_UNSIGNED:
        return expression
    return f"({expression}).to({e.dtype(dtype)})"


def call_text(function: str, *arguments: str, **keywords: Any) -> str:
    """Returns the text of a call; keywords that are None are left out, others are printed."""
    named = [f"{key}={value}" for key, value in keywords.items() if value is not None]
    return f"{function}({', '.join([*arguments, *named])})"
