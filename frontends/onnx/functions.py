"""Model-local functions, inlined at their call sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from regraft.frontends.onnx.node_import import NodeImport
from regraft.frontends.onnx.scope import NameScope
from regraft.frontends.onnx.text_fields import check_node_text
from regraft.ir.errors import InputError
from regraft.ir.graph import Value

Key = tuple[str, str, str]
Functions = Mapping[Key, onnx.FunctionProto]

MAX_NODES = 20_000_000
"""Nodes that a model may have once its calls are inlined; a few functions can describe 2^40."""


MAX_DEPTH = 150
"""Calls within calls that are inlined; each takes a few frames of the interpreter's stack."""


def function_table(proto: onnx.ModelProto) -> Functions:
    """Returns the model's functions by (domain, name, overload).

    Raises:
        InputError: When one that the graph uses calls itself, or the calls expand to too many
            nodes.
    """
    functions = {(_domain(f.domain), f.name, f.overload): f for f in proto.functions}
    if functions:
        num_nodes = _expanded_size(proto.graph.node, functions, {})
        if num_nodes > MAX_NODES:
            raise InputError(
                f"the model's functions expand to {num_nodes} nodes, {MAX_NODES} are allowed",
                hint="calls of calls multiply; a function that calls the next one twice doubles it",
            )
    return functions


def _expanded_size(
    nodes: Iterable[onnx.NodeProto],
    functions: Functions,
    known: dict[Key, int | None],
    depth: int = 0,
) -> int:
    """Returns the number of nodes after inlining; `known` holds None for functions under way.

    Cost: O(nodes of the file).
    """
    if depth > MAX_DEPTH:
        raise InputError(
            f"the model's functions call each other more than {MAX_DEPTH} deep",
            hint="inline some of them first",
        )
    total = 0
    for node in nodes:
        total += 1
        for attr in node.attribute:
            for body in (*([attr.g] if attr.HasField("g") else ()), *attr.graphs):
                total += _expanded_size(body.node, functions, known, depth + 1)
        key = _key(node)
        function = functions.get(key)
        if function is None:
            continue
        if key not in known:
            known[key] = None
            known[key] = _expanded_size(function.node, functions, known, depth + 1)
        size = known[key]
        if size is None:
            raise InputError(
                f"function `{function.name}` calls itself",
                hint="ONNX functions are inlined and cannot recurse; use a Loop",
            )
        total += size
    return total


def _key(node: onnx.NodeProto) -> Key:
    return (_domain(node.domain), node.op_type, node.overload)


def find_function(functions: Functions, node: onnx.NodeProto) -> onnx.FunctionProto | None:
    """Returns the function that a node calls, or None."""
    return functions.get(_key(node))


def inline_call(item: NodeImport, function: onnx.FunctionProto) -> Sequence[Value | None]:
    """Imports the body of a called function in place of the call.

    Raises:
        InputError: When an output is not defined.
    """
    outer = item.scope
    opsets = {_domain(entry.domain): entry.version for entry in function.opset_import}
    scope = NameScope(
        outer.graph, outer.walk, {**outer.opsets, **opsets}, outer.warnings, outer.external,
        outer.sizes, outer.functions, call_site=item.b.loc,
    )  # fmt: skip
    for i, name in enumerate(function.input):
        value = item.input(i)
        if value is None:
            scope.absent.add(name)
        else:
            scope.values[name] = value
    given = {attr.name: attr for attr in item.proto.attribute}
    given |= {attr.name: attr for attr in function.attribute_proto if attr.name not in given}
    check_node_text(function.node)
    for node in function.node:
        outer.walk.node(_bind_attributes(node, given), scope)
    results = [scope.find(name) for name in function.output]
    for name, result in zip(function.output, results, strict=True):
        if result is None and item.has_output(list(function.output).index(name)):
            raise InputError(f"function `{function.name}`: output `{name}` is defined nowhere")
    return results


def _bind_attributes(
    node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]
) -> onnx.NodeProto:
    """Returns the node with references to the function's attributes replaced by their values."""
    if not any(attr.ref_attr_name or attr.HasField("g") for attr in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attr in node.attribute:
        if attr.ref_attr_name:
            value = given.get(attr.ref_attr_name)
            if value is not None:
                copy = bound.attribute.add()
                copy.CopyFrom(value)
                copy.name = attr.name
            continue
        copy = bound.attribute.add()
        copy.CopyFrom(attr)
        if attr.HasField("g"):
            nodes = [_bind_attributes(inner, given) for inner in attr.g.node]
            del copy.g.node[:]
            copy.g.node.extend(nodes)
    return bound


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
