"""Expressions of a launch: where operands lie in terms of rows and columns, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.triton.chain_kernel import is_scalar
from regraft.backends.triton.chain_steps import Operand
from regraft.backends.triton.region_nodes import Shape
from regraft.backends.triton.regions import Region


def is_placed(operand: Operand) -> bool:
    """Whether an operand has some of the leading axes, so that a row's place is computed."""
    return not operand.is_every_row and bool(operand.runs)


def place_texts(operand: Operand, space: Shape, columns: int = 1) -> list[str]:
    """Returns the values of `places_of` an operand; `shape` holds the sizes of the space."""
    if is_scalar(operand):
        return []
    if operand.is_every_row:
        return [f"{operand.name}.stride(0)"] if operand.is_wide else []
    last = len(space) - columns
    texts = []
    for start, stop in operand.runs:
        texts.append(f"size_between(shape, {stop}, {last})")
        texts.append(f"size_between(shape, {start}, {stop})")
    return texts


def element_texts(operand: Operand, out: str) -> list[str]:
    """Returns the values of `places_of` an operand whose elements are found one by one.

    Args:
        operand: One of its runs per axis.
        out: A result, which says how tensors lie in memory.
    """
    if operand.is_wide or is_scalar(operand):
        return [] if is_scalar(operand) else [f"{operand.name}.stride(0)"]
    return [
        text
        for axis, _ in operand.runs
        for text in (f"elements_below({out}, {axis})", f"{out}.shape[{axis}]")
    ]


def width_text(region: Region) -> str:
    """Returns the expression of the number of columns; `shape` holds the sizes of the space."""
    rank = len(region.space)
    if region.columns == 1:
        return "shape[-1]"
    return f"size_between(shape, {rank - region.columns}, {rank})"


def rows_text(columns: int, *, is_dropped: bool = False) -> str:
    """Returns the expression of a shape with an element per row; `shape` is that of the space."""
    if is_dropped:
        return f"shape[:-{columns}]"
    return f"(*shape[:-{columns}], {', '.join(['1'] * columns)})"


def as_rows(operand: Operand, columns: int) -> str:
    """Returns the expression of an operand as a kernel reads it."""
    if not (operand.is_every_row and operand.is_wide):
        return f"{operand.name}.contiguous()"
    return f"rows_of({operand.name}{f'.flatten(-{columns})' if columns > 1 else ''})"


def shape_of(operands: Sequence[Operand], space: Shape) -> str:
    """Returns the expression of the sizes of a space in terms of operands."""
    full = next((op for op in operands if op.is_every_row and op.value.shape == space), None)
    if full is not None:
        return f"{full.name}.shape"
    return f"torch.broadcast_shapes({', '.join(f'{op.name}.shape' for op in operands)})"
