"""Shape functions that several operator families share."""

from __future__ import annotations

from regraft.ir.dims import DimLike, Shape, dim_max, is_input_size, known_equal
from regraft.ir.graph import Node, Value
from regraft.ir.types import DType, TensorType, Type


def broadcast(node: Node, *shapes: Shape | None) -> Shape | None:
    """Returns the multidirectional broadcast of the shapes, None when one is unknown.

    Two different sizes are assumed equal, and the assumption is recorded on the module. Of two
    sizes of inputs one may be 1 nevertheless: the result has the larger.

    Raises:
        TypeInferenceError: When two known sizes differ and neither is 1.
    """
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known))
    result: list[DimLike] = []
    for axis in range(-rank, 0):
        dim: DimLike = 1
        for shape in known:
            if -axis <= len(shape):
                dim = _broadcast_dim(node, dim, shape[axis])
        result.append(dim)
    return tuple(result)


def _broadcast_dim(node: Node, a: DimLike, b: DimLike) -> DimLike:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        if isinstance(b, int):
            raise node.error(f"sizes {a} and {b} do not broadcast")
        return a
    if isinstance(b, int) or known_equal(a, b):
        return b
    if is_input_size(a) and is_input_size(b):
        larger = dim_max(a, b)
        if larger not in (a, b):
            node.assume_equal(a, b, f"broadcast in {node.op.name}")
        return larger
    node.assume_equal(a, b, f"broadcast in {node.op.name}")
    # S rather than min(S, 512): the simpler of two equal sizes keeps later sizes simple
    return b if b.as_symbol() is not None and a.as_symbol() is None else a


def same_size(node: Node, a: DimLike, b: DimLike, what: str) -> DimLike:
    """Returns the size that two axes share; equal symbols that differ in name are assumed equal.

    Args:
        node: The node that needs the equality.
        a: One size.
        b: The other.
        what: What the axes are, for the message: `the contracted axes`.

    Raises:
        TypeInferenceError: When both are known and differ.
    """
    if a == b:
        return a
    if isinstance(a, int):
        if isinstance(b, int):
            raise node.error(f"{what} have sizes {a} and {b}")
        a, b = b, a
    if not known_equal(a, b):
        node.assume_equal(a, b, f"{what} of {node.op.name}")
    return b if isinstance(b, int) else a


def infer_broadcast(node: Node) -> Type:
    """Result type of an element-wise operator: broadcast shape, element type of the operands."""
    dtype = None
    for value in node.inputs:
        if value is not None:
            dtype = value.dtype
            if dtype is not None:
                break
    return TensorType(dtype, broadcast(node, *(v.shape for v in node.inputs if v is not None)))


def infer_predicate(node: Node) -> Type:
    """Result type of a comparison: broadcast shape, bool."""
    return TensorType(DType.BOOL, broadcast(node, *(v.shape for v in node.inputs if v is not None)))


def infer_same(node: Node) -> Type:
    """Result type equal to the first operand's."""
    first = node.inputs[0]
    if first is None:
        raise node.error("the first operand is missing")
    return first.type


def normalize_axis(node: Node, axis: int, rank: int) -> int:
    """Returns a non-negative axis.

    Raises:
        TypeInferenceError: When the axis is out of range.
    """
    if not -rank <= axis < rank:
        raise node.error(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def operands_of(node: Node, count: int) -> tuple[Value, ...]:
    """Returns the first `count` operands, all of which must be present.

    Raises:
        TypeInferenceError: Naming the slot that is empty.
    """
    for idx, value in enumerate(node.inputs[:count]):
        if value is None:
            raise node.error(f"operand `{node.op.operands[idx].name}` is missing")
    return tuple(node.inputs[:count])  # type: ignore[arg-type]  # no None is left
