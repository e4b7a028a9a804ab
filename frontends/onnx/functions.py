"""Model-local functions, inlined at their call sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from regraft.frontends.onnx.importer import NameScope, NodeImport, import_node
from regraft.ir.errors import InputError
from regraft.ir.graph import Value

Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]

MAX_DEPTH = 64
"""Calls nested deeper than this are taken for recursion."""


def function_table(proto: onnx.ModelProto) -> Functions:
    """Returns the model's functions by (domain, name, overload)."""
    return {(_domain(f.domain), f.name, f.overload): f for f in proto.functions}


def find_function(functions: Functions, node: onnx.NodeProto) -> onnx.FunctionProto | None:
    """Returns the function that a node calls, or None."""
    return functions.get((_domain(node.domain), node.op_type, node.overload))


def inline_call(item: NodeImport, function: onnx.FunctionProto) -> Sequence[Value | None]:
    """Imports the body of a called function in place of the call.

    Raises:
        InputError: When calls recurse or an output is not defined.
    """
    outer = item.scope
    if outer.depth >= MAX_DEPTH:
        raise item.error(f"function `{function.name}` calls itself")
    opsets = {_domain(entry.domain): entry.version for entry in function.opset_import}
    scope = NameScope(
        outer.graph, outer.table, {**outer.opsets, **opsets}, outer.warnings, outer.external,
        outer.functions, depth=outer.depth + 1, call_site=(*outer.call_site, *item.b.loc),
    )  # fmt: skip
    for i, name in enumerate(function.input):
        value = item.input(i)
        if value is None:
            scope.absent.add(name)
        else:
            scope.values[name] = value
    given = {attr.name: attr for attr in item.proto.attribute}
    given |= {
        attr.name: attr for attr in function.attribute_proto if attr.name not in given
    }
    for node in function.node:
        import_node(_bind_attributes(node, given), scope)
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
