"""A module as text that says nothing of names: equal texts compute the same in the same way.

Nodes come in the order in which the outputs need them, values and symbols are numbered as they
appear, and weights are named by their content. Operands of commutative operators are sorted. What
two weights of equal content make is one value: files keep one copy of them.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from regraft.ir.dims import Dim, DimLike, symbols_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import Trait
from regraft.ir.types import TensorType


class _Writer:
    """Numbers of values and symbols, and the lines written so far."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.keys: dict[Value, str] = {}
        self.symbols: dict[str, str] = {}
        self.made: dict[str, list[str]] = {}
        self.count = 0

    def size(self, dim: DimLike) -> str:
        """Returns a size with numbered symbols."""
        if not isinstance(dim, Dim):
            return str(dim)
        text = str(dim)
        for symbol in sorted(symbols_of([dim]), key=lambda s: text.index(str(s))):
            number = self.symbols.setdefault(str(symbol), f"n{len(self.symbols)}")
            text = re.sub(rf"(?<![\w.]){re.escape(str(symbol))}(?![\w.])", number, text)
        return text

    def attribute(self, value: Any) -> str:
        """Returns an attribute as text."""
        if isinstance(value, np.ndarray):
            return f"{value.dtype}{list(value.shape)}#{_digest(value)}"
        if isinstance(value, tuple):
            return f"[{', '.join(map(self.attribute, value))}]"
        if isinstance(value, Dim):
            return self.size(value)
        if isinstance(value, float):
            return f"{value:.6g}"  # f32 numbers come back from a file with their own digits
        return str(value)

    def key(self, value: Value | None) -> str:
        """Returns what stands for a value, writing nothing."""
        return "-" if value is None else self.keys[value]

    def graph(self, graph: Graph) -> Iterator[str]:
        """Yields the lines of a graph."""
        for value in graph.inputs:
            self.keys[value] = f"in{self.count}"
            self.count += 1
            yield f"{self.keys[value]}: {self._type(value)}"
        for output in graph.outputs:
            yield from self._need(output)
        yield f"return {', '.join(self.key(value) for value in graph.outputs)}"

    def _type(self, value: Value) -> str:
        kind = value.type
        if not isinstance(kind, TensorType) or kind.shape is None:
            return str(kind)
        return f"{kind.dtype}[{', '.join(map(self.size, kind.shape))}]"

    def _need(self, root: Value) -> Iterator[str]:
        stack: list[tuple[Value, bool]] = [(root, False)]
        while stack:
            value, is_ready = stack.pop()
            if value in self.keys or value.producer is None:
                continue
            node = value.producer
            if is_ready:
                yield from self._node(node)
                continue
            stack.append((value, True))
            stack += [(v, False) for v in reversed(node.inputs) if v is not None]

    def _node(self, node: Node) -> Iterator[str]:
        if Trait.CONSTANT in node.op.traits:
            array = node.attrs.get("value")
            if array is None:
                array = self.module.weights[node.attrs["name"]].numpy()
            array = np.asarray(array)
            self.keys[node.output] = f"{array.dtype}{list(array.shape)}#{_digest(array)}"
            return
        operands = [self.key(value) for value in node.inputs]
        if Trait.COMMUTATIVE in node.op.traits:
            operands.sort()
        attrs = {name: self.attribute(value) for name, value in sorted(node.attrs.items())}
        text = f"{node.op.name}({', '.join(operands)}) {attrs}"
        known = self.made.get(text)
        if known is not None and node.op.is_pure and not node.bodies:
            self.keys.update(zip(node.outputs, known, strict=True))
            return
        for value in node.outputs:
            self.keys[value] = f"v{self.count}"
            self.count += 1
        self.made[text] = [self.keys[value] for value in node.outputs]
        yield f"{self.keys[node.outputs[0]]} = {text}"
        for body in node.bodies:
            yield "{"
            yield from self.graph(body)
            yield "}"


def _digest(array: np.ndarray[Any, Any]) -> str:
    data = np.ascontiguousarray(array)
    raw = repr(data.tolist()).encode() if data.dtype == object else data.tobytes()
    return hashlib.sha256(raw).hexdigest()[:12]


def canonical_lines(module: Module) -> list[str]:
    """Returns the lines of a module; cost O(nodes + bytes of weights)."""
    return list(_Writer(module).graph(module.graph))
