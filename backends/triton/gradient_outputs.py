"""How the gradients of operands are written: whole, or as parts that are summed later."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from regraft.backends.triton.chain_gradients import Gradient
from regraft.backends.triton.chain_kernel import is_scalar
from regraft.backends.triton.chain_steps import Operand


class Way(enum.Enum):
    """How the gradient of an operand is written."""

    WHOLE = "an element each"
    ROW = "an element per row"
    ROW_PARTS = "an element per row in f32, summed over rows that share one"
    COLUMN_PARTS = "per program in f32, summed over programs; per element where rows are long"
    PARTS = "an element each in f32, summed over rows that share one"


def _way_of(operand: Operand) -> Way:
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
        variable: That holds it in the kernel; None where it is zero.
        way: How it is written.
    """

    operand: Operand
    variable: str | None
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


def out_of(gradient: Gradient) -> Out:
    """Returns how a gradient is written."""
    return Out(gradient.operand, gradient.name, _way_of(gradient.operand))
