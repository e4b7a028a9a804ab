"""Run-time sizes: where symbols can be read, and nodes that compute size tensors from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import Dim, DimLike, DimOp, Symbol
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Value
from regraft.ir.ops.content import at_least

if TYPE_CHECKING:
    from regraft.backends.onnx.graph_emitter import GraphEmitter

_SHAPE_HAS_BOUNDS = 15


class SizeBuilder:
    """Builds size tensors for one graph under construction; equal computations are shared.

    Args:
        emitter: The graph.
        outer: The enclosing graph's builder, whose sources a body can read too.
    """

    def __init__(self, emitter: GraphEmitter, outer: SizeBuilder | None = None) -> None:
        self.emitter = emitter
        self.sources: dict[str, tuple[str, int]] = dict(outer.sources) if outer else {}
        self.shared: dict[Any, str] = {}

    def note(self, value: Value) -> None:
        """Remembers where the symbols in a value's shape can be read at run time."""
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.name not in self.sources:
                self.sources[symbol.name] = (self.emitter.names[value], axis)

    def is_new(self, value: Value) -> bool:
        """Returns whether a size that only run time knows can be read from `value` first.

        Size attributes may speak of it although nothing uses the value's elements.
        """
        for dim in value.shape or ():
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.defined and symbol.name not in self.sources:
                return True
        return False

    def dims(self, values: Sequence[DimLike] | DimLike) -> str:
        """Returns the name of an i64 tensor holding the sizes; see `EmitContext.ints`."""
        scalar = isinstance(values, int | Dim)
        items: list[DimLike] = [values] if isinstance(values, int | Dim) else list(values)
        if all(isinstance(item, int) for item in items):
            array = np.array(items, np.int64)
            return self.emitter.constant(array[0] if scalar else array)
        parts: list[str] = []
        run: list[int] = []
        for item in items:
            if isinstance(item, int):
                run.append(item)
                continue
            if run:
                parts.append(self.emitter.constant(np.array(run, np.int64)))
                run = []
            parts.append(self.dim(item))
        if run:
            parts.append(self.emitter.constant(np.array(run, np.int64)))
        if scalar:
            axes = self.emitter.constant(np.array([0], np.int64))
            return self._cached(("squeeze", parts[0]), "Squeeze", [parts[0], axes], {})
        if len(parts) == 1:
            return parts[0]
        return self._cached(("concat", *parts), "Concat", parts, {"axis": 0})

    def dim(self, dim: DimLike) -> str:
        """Returns the name of an i64[1] tensor that holds one size."""
        if isinstance(dim, int):
            return self.emitter.constant(np.array([dim], np.int64))
        total = ""
        for mono, coef in dim.terms:
            factor = (
                self.emitter.constant(np.array([coef], np.int64)) if coef != 1 or not mono else ""
            )
            for atom, power in mono:
                name = self._symbol(atom) if isinstance(atom, Symbol) else self._op(atom)
                for _ in range(power):
                    factor = self._binary("Mul", factor, name) if factor else name
            total = self._binary("Add", total, factor) if total else factor
        return total

    def _symbol(self, symbol: Symbol) -> str:
        found = self.sources.get(symbol.name)
        if found is None:
            raise UnsupportedError(
                f"size `{symbol.name}` cannot be read from any value in the emitted graph"
            )
        name, axis = found
        if self.emitter.opset >= _SHAPE_HAS_BOUNDS:
            bounds = {"start": axis, "end": axis + 1}
            return self._cached(("shape", name, axis), "Shape", [name], bounds)
        shape = self._cached(("shape", name), "Shape", [name], {})
        idx = self.emitter.constant(np.array([axis], np.int64))
        return self._cached(("gather", shape, axis), "Gather", [shape, idx], {"axis": 0})

    def _op(self, atom: DimOp) -> str:
        a, b = self.dim(atom.args[0]), self.dim(atom.args[1])
        match atom.kind:
            case "exactdiv":
                return self._binary("Div", a, b)
            case "floordiv":
                if at_least(atom.args[0], 0) and at_least(atom.args[1], 1):
                    return self._binary("Div", a, b)
                # ONNX Div truncates; floor(a / b) == (a - mod(a, b)) / b with Mod's divisor sign
                rest = self._binary("Mod", a, b)
                return self._binary("Div", self._binary("Sub", a, rest), b)
            case "mod":
                return self._binary("Mod", a, b)
            case _:
                result = a
                op_type = "Min" if atom.kind == "min" else "Max"
                for arg in atom.args[1:]:
                    result = self._binary(op_type, result, self.dim(arg))
                return result

    def _binary(self, op_type: str, a: str, b: str) -> str:
        return self._cached((op_type, a, b), op_type, [a, b], {})

    def _cached(self, key: Any, op_type: str, inputs: list[str], attrs: dict[str, Any]) -> str:
        found = self.shared.get(key)
        if found is None:
            found = self.emitter.fresh("size")
            self.emitter.emit(op_type, inputs, [found], "", attrs)
            self.shared[key] = found
        return found
