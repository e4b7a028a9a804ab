"""Matrices that a model multiplies by their transpose too: the file holds one of the two.

The table of tokens of most language models is their last matrix as well, transposed. ONNX's
products take no transposed operand of any rank, so that the file says `Transpose`; runtimes
compute it once, when they load the model (ONNX Runtime's constant folding), and run what they
would run of a second copy.
"""

from __future__ import annotations

from regraft.ir.constants import weight
from regraft.ir.derive import derive
from regraft.ir.graph import Graph, Node
from regraft.ir.matrix_rows import rows_of
from regraft.ir.ops import linalg
from regraft.ir.steps import Source, Tree
from regraft.ir.weights import Weight

_MIN_BYTES = 1 << 16
"""A smaller copy costs less than a further node."""

_MAX_BYTES = (1 << 31) - 1
"""A runtime that folds into protobufs makes none larger: it would transpose at each run."""

_PRODUCTS = (linalg.matmul, linalg.gemm)


def transposed_matrices(graph: Graph) -> dict[str, Node]:
    """Returns the `weight` node of which each of some weights, by name, is the transpose.

    It is so for float matrices of the main graph that only products read, in no body, where the
    graph reads the other one anyway. Cost: O(nodes); no weight is read.
    """
    store = graph.scope.weights
    within = {
        node.attrs["name"] for node in graph.walk() if node.op is weight and node.graph is not graph
    }
    read = [node for node in graph if node.op is weight and node.output.num_uses]
    stored: dict[Tree | int, Node] = {}
    for node in read:
        stored.setdefault(_identity(store[node.attrs["name"]]), node)
    found: dict[str, Node] = {}
    other_uses: set[str] = within
    for node in read:
        name, held = node.attrs["name"], store[node.attrs["name"]]
        if node.output.is_output or any(user.op not in _PRODUCTS for user in node.output.users):
            other_uses.add(name)
        if not held.dtype.is_float or not _MIN_BYTES <= held.nbytes <= _MAX_BYTES:
            continue
        rows = rows_of(held)
        other = stored.get(_identity(rows.weight)) if rows.transposed else None
        if other is not None:
            found[name] = other
    return {name: other for name, other in found.items() if name not in other_uses}


def _identity(held: Weight) -> Tree | int:
    """Returns what two weights of one tensor have in common: its steps, or where it is held."""
    tree = derive("", held)
    return id(tree.weight) if isinstance(tree, Source) else tree
