"""Forms that are one call in PyTorch where the IR has several nodes.

The linear layer; and a value rounded to a range, which can then be trained through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.backends.torch.emitter import Absorbed
from regraft.backends.torch.library.quantizing import rounded_to_range
from regraft.ir.constants import is_constant, weight
from regraft.ir.graph import Node, Value
from regraft.ir.ops.arithmetic import add
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.quant import dequantize, integer_range, quantize
from regraft.ir.ops.reshaping import transpose
from regraft.ir.types import DType

if TYPE_CHECKING:
    from regraft.backends.torch.emitter import EmitContext
    from regraft.backends.torch.graph_emitter import GraphEmitter


def find(nodes: Sequence[Node]) -> dict[Node, Absorbed]:
    """Returns the nodes that a following one takes in; cost O(nodes).

    Matrix products by a sum with a bias, codes by what they are turned back to.
    """
    inside = set(nodes)
    found: dict[Node, Absorbed] = {}
    for node in nodes:
        if node.op is add:
            product = biased_product(node)
            if product is not None and product in inside:
                found[product] = Absorbed(node)
        elif node.op is matmul:
            moved = None if node.inputs[1] is None else node.inputs[1].producer
            if moved is not None and moved in inside and is_only_factor(moved):
                found[moved] = Absorbed(node)
        elif node.op is dequantize:
            rounding = rounded_value(node)
            if rounding is not None and rounding in inside:
                found[rounding] = Absorbed(node)
    return found


def emit(e: EmitContext, graph: GraphEmitter) -> str | None:
    """Returns `F.linear(x, weight, bias)` for a product with a stored matrix, or None.

    Codes that are turned back at once are a call too.
    """
    node = e.node
    if node.op is dequantize:
        rounding = rounded_value(node)
        return None if rounding not in graph.absorbed else _rounded(e, graph, rounding)
    if node.op is add:
        product = biased_product(node)
        if product is None or product not in graph.absorbed:
            return None
        bias = next(v for v in node.inputs if v is not None and v is not product.output)
        return f"F.linear({linear_operands(graph, product, bias)})"
    if node.op is matmul and is_stored_matrix(node.inputs[1]):
        return f"F.linear({linear_operands(graph, node, None)})"
    return None


def rounded_value(node: Node) -> Node | None:
    """Returns what gives the codes that a node turns back, in one range of f32 for all numbers."""
    first, *rest = node.inputs
    made = None if first is None else first.producer
    if made is None or made.op is not quantize or first is None or first.num_uses != 1:
        return None
    same = tuple(made.inputs[1:]) == tuple(rest) and made.graph is node.graph
    is_one = all(value is None or value.rank == 0 for value in rest)
    x, dtype = made.inputs[0], first.dtype
    is_plain = x is not None and x.dtype is DType.F32 and node.output.dtype is DType.F32
    is_fine = dtype is not None and dtype.is_integer and made.attrs["precision"] is None
    return made if same and is_one and is_plain and is_fine else None


def _rounded(e: EmitContext, graph: GraphEmitter, rounding: Node) -> str:
    """Returns the call for a value that is rounded to a range."""
    x, scale, zero = (*rounding.inputs, None)[:3]
    dtype = rounding.output.dtype
    if x is None or scale is None or dtype is None:
        raise AssertionError("codes without what they are made of")
    low, high = integer_range(dtype)
    point = "None" if zero is None else graph.expression(zero)
    operands = f"{graph.expression(x)}, {graph.expression(scale)}, {point}"
    return f"{e.helper(rounded_to_range)}({operands}, {low}, {high}, {e.dtype(dtype)})"


def linear_operands(graph: GraphEmitter, product: Node, bias: Value | None) -> str:
    """Returns `x, weight, bias` of a product with a stored matrix, whose rows are outputs."""
    x, w = product.inputs[0], product.inputs[1]
    if x is None or w is None:
        raise AssertionError("a product without operands")
    arguments = [graph.expression(x), graph.transposed(w)]
    return ", ".join(arguments + ([] if bias is None else [graph.expression(bias)]))


def biased_product(node: Node) -> Node | None:
    """Returns the product of `x @ w + bias`, both stored, when nothing else reads it."""
    for product_idx, bias_idx in ((0, 1), (1, 0)):
        value, bias = node.inputs[product_idx], node.inputs[bias_idx]
        made = None if value is None else value.producer
        if made is None or made.op is not matmul or value is None or value.num_uses != 1:
            continue
        if made.graph is node.graph and is_stored_matrix(made.inputs[1]) and _fits(bias, made):
            return made
    return None


def is_stored_matrix(value: Value | None) -> bool:
    """Returns whether a value is a float weight of rank 2, or the transpose of one."""
    made = None if value is None else value.producer
    if made is not None and made.op is transpose and value is not None and value.rank == 2:
        return made.attrs["perm"] in ((1, 0), None) and is_stored_matrix(made.inputs[0])
    return (
        value is not None
        and value.rank == 2
        and made is not None
        and made.op is weight
        and value.dtype is not None
        and value.dtype.is_float
    )


def is_only_factor(moved: Node) -> bool:
    """Returns whether a node transposes a stored matrix for products alone."""
    value = moved.output
    return (
        moved.op is transpose
        and is_stored_matrix(value)
        and all(
            isinstance(user, Node) and user.op is matmul and idx == 1 for user, idx in value.uses
        )
    )


def _fits(bias: Value | None, product: Node) -> bool:
    """Whether a bias is a stored vector with one element per column."""
    if not is_constant(bias) or bias is None or bias.rank != 1 or product.output.rank == 0:
        return False
    columns = product.inputs[1]
    x = product.inputs[0]
    if columns is None or columns.shape is None or x is None or x.rank in (None, 0):
        return False
    return bias.shape == columns.shape[1:]
