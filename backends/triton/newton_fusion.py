"""Finds Newton's iteration for the inverse of small matrices: X <- 2 X - X A X, step after step.

All steps become one call of `kernels.newton_inverse`, whose first iterate is what the model makes
of A. Such steps are those of attention with landmarks (`linearize-attention` to `soft`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regraft.backends.triton.chain_forms import number_of
from regraft.backends.triton.kernel_calls import fits
from regraft.backends.triton.kernels.newton import LARGEST_INVERSE
from regraft.ir.graph import Node, Value
from regraft.ir.ops.arithmetic import add, mul, sub
from regraft.ir.ops.linalg import matmul

_LEAST_STEPS = 2


@dataclass(frozen=True, slots=True)
class Inverse:
    """Steps of the iteration.

    Args:
        matrix: A.
        start: The first iterate.
        steps: How many steps there are.
        taken: Their nodes but the last, in graph order.
    """

    matrix: Value
    start: Value
    steps: int
    taken: tuple[Node, ...]


def inverses(nodes: Sequence[Node]) -> Iterator[tuple[Node, Inverse]]:
    """Yields the last node of each iteration, and the iteration; cost O(nodes)."""
    inside = set(nodes)
    found: dict[Value, tuple[Node, Inverse]] = {}
    for node in nodes:
        step = _step_of(node, inside) if node.op is sub else None
        if step is None:
            continue
        before = found.get(step.start)
        # an iterate that something else reads has to be in memory
        if before is not None and _is_step_alone(step) and before[1].matrix is step.matrix:
            last, known = found.pop(step.start)
            taken = (*known.taken, last, *step.taken)
            step = Inverse(step.matrix, known.start, known.steps + 1, taken)
        found[node.output] = node, step
    for node, step in found.values():
        if step.steps >= _LEAST_STEPS:
            yield node, step


def _step_of(node: Node, inside: set[Node]) -> Inverse | None:
    """Returns `2 X - (X A) X` as an iteration of one step."""
    twice, product = (None if value is None else value.producer for value in node.inputs)
    if twice is None or product is None or product.op is not matmul:
        return None
    through, x = product.inputs
    first = None if through is None else through.producer
    if x is None or first is None or first.op is not matmul or first.inputs[0] is not x:
        return None
    matrix, taken = first.inputs[1], (twice, first, product)
    is_held = inside.issuperset(taken) and all(each.output.num_uses == 1 for each in taken)
    if matrix is None or not is_held or not _is_twice(twice, x):
        return None
    return Inverse(matrix, x, 1, taken) if _is_small(matrix, x) else None


def _is_twice(node: Node, x: Value) -> bool:
    """Whether a node is X + X or 2 X."""
    if node.op is add:
        return all(value is x for value in node.inputs)
    if node.op is not mul or x not in node.inputs:
        return False
    return number_of(next((value for value in node.inputs if value is not x), None)) == 2.0


def _is_small(matrix: Value, x: Value) -> bool:
    """Whether matrices are square, of one shape, and such that a program holds one."""
    shape = x.shape
    if not fits(matrix, x) or shape is None or len(shape) < 2 or matrix.shape != shape:
        return False
    size = shape[-1]
    return isinstance(size, int) and size == shape[-2] and size <= LARGEST_INVERSE


def _is_step_alone(step: Inverse) -> bool:
    """Whether nothing but a step reads the iterate that it begins with."""
    nodes = {user for user, _ in step.start.uses}
    return nodes <= set(step.taken)
