"""Names and operator types have to be text: protobuf hands out bytes where they are not UTF-8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from regraft.ir.errors import InputError


def check_graph_text(graph: onnx.GraphProto) -> None:
    """Checks the names of a graph, without those inside its bodies.

    Raises:
        InputError: Naming what is not UTF-8.
    """
    for what, items in (
        ("initializer", graph.initializer),
        ("graph input", graph.input),
        ("graph output", graph.output),
    ):
        for item in items:
            _require(item.name, what)
    check_node_text(graph.node)


def check_node_text(nodes: Iterable[onnx.NodeProto]) -> None:
    """Checks operator types, value names and attribute names; a node's own name is only a label."""
    for node in nodes:
        for text in _texts(node):
            if type(text) is not str:
                _require(text, f"node of operator {node.op_type!r}: a name")


def _texts(node: onnx.NodeProto) -> Iterator[object]:
    yield node.op_type
    yield node.domain
    yield from node.input
    yield from node.output
    if not is_named_freely(node):
        for attr in node.attribute:
            yield attr.name


def is_named_freely(node: onnx.NodeProto) -> bool:
    """Returns whether the name of the node's attribute means nothing.

    ONNX Runtime takes the only attribute of a Constant for its value, whatever it is called.
    """
    return node.op_type == "Constant" and len(node.attribute) == 1


def _require(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise InputError(
            f"{what}: {text!r} is not UTF-8 text", hint="the file is corrupt; export it again"
        )
