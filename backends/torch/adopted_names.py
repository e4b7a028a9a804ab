"""Names that exporters lost: `onnx::MatMul_470` is `encoder.layer.0.query.weight` again.

PyTorch's ONNX exporter transposes the matrix of a linear layer and gives it a number. Its bias, or
the path of the node that uses it, still says which layer it was.
"""

from __future__ import annotations

import re

from regraft.backends.torch.naming import is_identifier
from regraft.backends.torch.peepholes import biased_product, is_stored_matrix
from regraft.ir.constants import weight
from regraft.ir.derive import derive
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.arithmetic import add
from regraft.ir.ops.linalg import matmul
from regraft.ir.steps import Gather, Slice, Source, Transpose
from regraft.ir.weights import Role, Weight

TOOL_MADE = re.compile(r"[:/]")
"""What no name of a PyTorch parameter holds."""

_NODE_PATH = "onnx:/"


def adopted_names(module: Module) -> dict[str, str]:
    """Returns stored matrices of linear layers -> the name that the layer's `weight` had.

    The tensor under that name is the transpose of the stored one, as PyTorch holds it.
    """
    store = module.weights
    biased: dict[Node, str] = {}
    found: dict[str, str] = {}
    for node in reversed(list(module.graph.walk())):
        if node.op is add:
            product = biased_product(node)
            if product is not None:
                a, b = node.inputs
                biased[product] = _stored_name(b if a is product.output else a)
        elif node.op is matmul and is_stored_matrix(node.inputs[1]):
            name = _adopted(module, node, biased.get(node, ""))
            if name is not None:
                found[_stored_name(node.inputs[1])] = name
    counts: dict[str, int] = {}
    for name in found.values():
        counts[name] = counts.get(name, 0) + 1
    return {
        stored: name for stored, name in found.items() if counts[name] == 1 and name not in store
    }


def _stored_name(value: Value | None) -> str:
    """Returns the name of the stored weight that a value is, or nothing."""
    node = None if value is None else value.producer
    if node is None or node.op is not weight or node.graph is None:
        return ""
    return node.graph.scope.weights.resolve(node.attrs["name"])


def _adopted(module: Module, product: Node, bias: str) -> str | None:
    matrix = product.inputs[1]
    name = _stored_name(matrix)
    if matrix is None or matrix.num_uses != 1 or not TOOL_MADE.search(name):
        return None
    if module.weights.role(name) is not Role.PARAM or not _is_part_of(name, module.weights[name]):
        return None
    if bias.endswith(".bias") and not TOOL_MADE.search(bias):
        return f"{bias.removesuffix('.bias')}.weight"
    path = next((loc for loc in product.loc if loc.startswith(_NODE_PATH)), "")
    parts = path.removeprefix(_NODE_PATH).split("/")[:-1]
    words = [word for part in parts for word in part.split(".")]
    if not words or not all(is_identifier(word) or word.isdecimal() for word in words):
        return None
    return f"{'.'.join(words)}.weight"


def _is_part_of(name: str, weight: Weight) -> bool:
    """Returns whether a weight is the tensor of its name: all of it, what is left, or turned."""
    tree = derive(name, weight)
    while isinstance(tree, Transpose | Gather | Slice):
        tree = tree.x
    return isinstance(tree, Source) and tree.name == name
