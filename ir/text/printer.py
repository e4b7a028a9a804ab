"""Prints modules in the text form.

```
module "tiny"
meta "onnx.opset" = 17
symbol B
weight @w : f32[4, 8] role=param = random(1)

graph(%x : f32[B, 4]) {
  %w = weight @w
  %h = matmul(%x, %w) : f32[B, 8]  // fc1
  %0 = relu(%h) : f32[B, 8]
  return %0 as %y
}
```
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.constants import literal, weight
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.text.arrays import print_array
from regraft.ir.text.lexer import print_name, print_origins, quote
from regraft.ir.text.values import print_value
from regraft.ir.text.weights import WeightForm, print_weights
from regraft.ir.types import Type

if TYPE_CHECKING:
    from regraft.ir.module import Module


def print_module(
    module: Module,
    *,
    weights: WeightForm = "auto",
    base: Path | None = None,
    origins: bool = True,
) -> str:
    """Returns the text form of a module; cost O(nodes) and the elements that are printed.

    Args:
        module: The module.
        weights: How tensors print: `auto` (small inline, files by reference, large by name),
            `inline` (all elements) or `names` (none).
        base: Folder to which file names are relative.
        origins: Whether nodes print where they come from, as a comment.
    """
    lines = [f"module {quote(module.name)}"]
    if module.level != "canonical":
        lines.append(f"level {quote(module.level)}")
    if module.weights.trainable:
        lines.append("trainable")
    lines += [f"meta {quote(key)} = {print_value(value)}" for key, value in module.meta.items()]
    for symbol in module.symbols.values():
        facts = [] if symbol.lo == 1 else [f"lo={symbol.lo}"]
        facts += [] if symbol.hi is None else [f"hi={symbol.hi}"]
        facts += [] if symbol.multiple_of == 1 else [f"multiple_of={symbol.multiple_of}"]
        facts += ["defined"] if symbol.defined else []
        lines.append(" ".join(["symbol", str(symbol), *facts]))
    lines += [f"assume {a.left} == {a.right} {quote(a.reason)}" for a in module.assumptions]
    lines += [
        f"state {quote(s.name)} {s.kind.value} {quote(s.input)} -> {quote(s.output)}"
        for s in module.states
    ]
    lines += print_weights(module.weights, weights, base)
    lines.append("")
    printer = _Printer(lines, origins)
    printer.graph(module.graph, "graph", "")
    return "\n".join(lines) + "\n"


def print_node(node: Node) -> str:
    """Returns one node in one line, its bodies left out, for messages."""
    names = {
        value: print_name("%", value.name) if value.name is not None else "%_"
        for value in (*node.inputs, *node.outputs)
        if value is not None
    }
    printer = _Printer([], origins=True)
    attrs, types = printer.attrs(node), printer.result_types(node)
    return printer.head(node, names) + attrs + types + print_origins(node.loc)


class _Printer:
    """Appends the lines of graphs to `lines`."""

    __slots__ = ("_types", "lines", "origins")

    def __init__(self, lines: list[str], origins: bool) -> None:
        self.lines = lines
        self.origins = origins
        self._types: dict[Type, str] = {}

    def graph(self, graph: Graph, opening: str, indent: str) -> None:
        """Prints a graph; its first line starts with `opening`."""
        names = _value_names(graph)
        inputs = ", ".join(f"{names[v]} : {self.type(v.type)}" for v in graph.inputs)
        self.lines.append(f"{opening}({inputs}) {{")
        inner = indent + "  "
        for node in graph:
            self.node(node, names, inner)
        outputs = [
            names[value]
            if value.name == name and names[value] == print_name("%", name)
            else f"{names[value]} as {print_name('%', name)}"
            for name, value in zip(graph.output_names, graph.outputs, strict=True)
        ]
        self.lines.append(f"{inner}return {', '.join(outputs)}".rstrip())
        self.lines.append(f"{indent}}}")

    def node(self, node: Node, names: dict[Value, str], indent: str) -> None:
        """Prints a node with its bodies."""
        end = self.result_types(node) + (print_origins(node.loc) if self.origins else "")
        head = f"{indent}{self.head(node, names)}{self.attrs(node)}"
        if not node.bodies:
            self.lines.append(head + end)
            return
        for i, body in enumerate(node.bodies):
            self.graph(body, f"{indent}body" if i else f"{head} body", indent)
        self.lines[-1] += end

    def head(self, node: Node, names: dict[Value, str]) -> str:
        """Returns results, operator and operands."""
        results = ", ".join([names[value] for value in node.outputs])
        if node.op is literal:
            return f"{results} = literal {print_array(node.attrs['value'])}"
        if node.op is weight:
            return f"{results} = weight {print_name('@', node.attrs['name'])}"
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None and not node.op.is_variadic:
            inputs.pop()
        operands = ", ".join(["_" if value is None else names[value] for value in inputs])
        return f"{results} = {node.op.name}({operands})"

    def attrs(self, node: Node) -> str:
        """Returns the attributes that differ from their defaults, "" when there are none."""
        if node.op is literal or node.op is weight:
            return ""
        parts = []
        for attr in node.op.all_attrs.values():
            value = node.attrs.get(attr.name, attr.default)  # the verifier prints broken nodes
            if not _is_default(value, attr.default):
                parts.append(f"{attr.name} = {print_value(value)}")
        return f" {{{', '.join(parts)}}}" if parts else ""

    def result_types(self, node: Node) -> str:
        """Returns the types of the results; a constant's type stands elsewhere."""
        if node.op is literal or node.op is weight:
            return ""
        return " : " + ", ".join([self.type(value.type) for value in node.outputs])

    def type(self, type_: Type) -> str:
        """Returns a type as text."""
        text = self._types.get(type_)
        if text is None:
            text = self._types[type_] = str(type_)
        return text


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default) or isinstance(value, np.ndarray):
        return False
    return bool(value == default)


def _value_names(graph: Graph) -> dict[Value, str]:
    """Returns unique printed names: given names, suffixed where taken twice, else numbers."""
    values = list(graph.inputs)
    for node in graph:
        values.extend(node.outputs)
    given = {value.name for value in values}
    names: dict[Value, str] = {}
    used: set[str] = set()
    number = 0
    for value in values:
        name = value.name
        if name is None:
            names[value] = f"%{number}"
            number += 1
            continue
        if name in used:
            suffix = 1
            while f"{name}.{suffix}" in given or f"{name}.{suffix}" in used:
                suffix += 1
            name = f"{name}.{suffix}"
        used.add(name)
        names[value] = print_name("%", name)
    return names
