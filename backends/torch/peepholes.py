"""Forms that PyTorch has in one call where the IR has several nodes: the linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.backends.torch.emitter import Absorbed
from regraft.ir.constants import is_constant, weight
from regraft.ir.graph import Node, Value
from regraft.ir.ops.arithmetic import add
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.reshaping import transpose

if TYPE_CHECKING:
    from regraft.backends.torch.emitter import EmitContext
    from regraft.backends.torch.graph_emitter import GraphEmitter


def find(nodes: Sequence[Node]) -> dict[Node, Absorbed]:
    """Returns the matrix products that a following sum with a bias takes in; cost O(nodes)."""
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
    return found


def emit(e: EmitContext, graph: GraphEmitter) -> str | None:
    """Returns `F.linear(x, weight, bias)` for a product with a stored matrix, or None."""
    node = e.node
    if node.op is add:
        product = biased_product(node)
        if product is None or product not in graph.absorbed:
            return None
        bias = next(v for v in node.inputs if v is not None and v is not product.output)
        return f"F.linear({linear_operands(graph, product, bias)})"
    if node.op is matmul and is_stored_matrix(node.inputs[1]):
        return f"F.linear({linear_operands(graph, node, None)})"
    return None


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
