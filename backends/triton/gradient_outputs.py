"""How the gradients of operands are written: whole, or as parts that are summed later."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from regraft.backends.triton.chain_gradients import Gradients
from regraft.backends.triton.chain_kernel import is_scalar
from regraft.backends.triton.chain_steps import Operand


class Way(enum.Enum):
    """How the gradient of an operand is written."""

    WHOLE = "an element each"
    ROW = "an element per row"
    ROW_PARTS = "an element per row in f32, summed over rows that share one"
    COLUMN_PARTS = "per program in f32, summed over programs; per element where rows are long"
    CHANNEL_PARTS = "an element per channel of a group in f32, summed over images that share one"
    PARTS = "an element each in f32, summed over rows that share one"


def _way_of(operand: Operand) -> Way:
    if operand.is_per_channel:
        return Way.CHANNEL_PARTS
    if is_scalar(operand) or (not operand.is_wide and not operand.is_every_row):
        return Way.ROW_PARTS
    if operand.is_every_row:
        return Way.WHOLE if operand.is_wide else Way.ROW
    return Way.PARTS if operand.runs else Way.COLUMN_PARTS


@dataclass(frozen=True, slots=True)
class Out:
    """A gradient that is written.

    Args:
        operand: Of which.
        variable: That holds it in the kernel.
        way: How it is written.
    """

    operand: Operand
    variable: str
    way: Way

    @property
    def name(self) -> str:
        """The tensor that is returned."""
        return f"{self.operand.name}_gradient"

    @property
    def written(self) -> str:
        """The tensor that the kernel writes."""
        is_final = self.way in (Way.WHOLE, Way.ROW)
        return self.name if is_final else f"{self.operand.name}_parts"

    @property
    def needs(self) -> str:
        """The argument that says whether it is wanted."""
        return f"needs_{self.operand.name}"


@dataclass(frozen=True, slots=True)
class Outs:
    """Where the gradients of all float operands are found.

    Args:
        made: What a kernel writes.
        sources: Per operand its place among the gradients of the float results and, after them,
            `made`; -1 where it is zero. One that is that of a result, or that of another operand,
            is handed through.
        needs: Per operand the argument that says whether it is wanted; None for one that the
            kernel does not return.
    """

    made: tuple[Out, ...]
    sources: tuple[int, ...]
    needs: tuple[str | None, ...]


def outs_of(gradients: Gradients) -> Outs:
    """Returns where the gradients of operands are found."""
    made: list[Out] = []
    sources: list[int] = []
    needs: list[str | None] = []
    known = {_key(each, each.name): idx for idx, each in enumerate(gradients.given)}
    for gradient in gradients.found:
        if gradient.name is None:
            sources.append(-1)
            needs.append(None)
            continue
        way = _way_of(gradient.operand)
        key = _key(gradient.operand, gradient.name)
        is_whole = way in (Way.WHOLE, Way.ROW)
        is_new = not is_whole or key not in known
        place = len(gradients.given) + len(made) if is_new else known[key]
        sources.append(place)
        if is_new:
            made.append(Out(gradient.operand, gradient.name, way))
            if is_whole:
                known[key] = place
        needs.append(made[-1].needs if is_new else None)
    return Outs(tuple(made), tuple(sources), tuple(needs))


def _key(operand: Operand, variable: str) -> tuple[object, ...]:
    """Returns what two gradients have in common that are one tensor."""
    return (variable, operand.value.shape, operand.value.dtype)
