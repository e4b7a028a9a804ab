"""Structural comparison of modules: where two differ, ignoring the identity of objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.weights import Weight


def differences(a: Module, b: Module, *, origins: bool = True) -> list[str]:
    """Returns one sentence per difference, empty when the modules are equal.

    Compares names, types, contents, attributes, order, origins, weights by element, symbols,
    states, assumptions and metadata.

    Args:
        a: One module.
        b: The other.
        origins: Whether nodes must come from the same places.
    """
    found: list[str] = []
    for what in ("name", "level", "states", "meta", "symbols", "assumptions"):
        left, right = getattr(a, what), getattr(b, what)
        if not _equal(left, right):
            found.append(f"{what}: {left} and {right}")
    _weights(a, b, found)
    _graphs(a.graph, b.graph, "", origins, found)
    return found


def _weights(a: Module, b: Module, found: list[str]) -> None:
    if list(a.weights) != list(b.weights) or a.weights.aliases != b.weights.aliases:
        found.append(f"weights: {list(a.weights)} and {list(b.weights)}")
        return
    for name in a.weights:
        if a.weights.role(name) is not b.weights.role(name):
            found.append(f"weight `{name}`: {a.weights.role(name)} and {b.weights.role(name)}")
        if not _same_tensor(a.weights[name], b.weights[name]):
            found.append(f"weight `{name}` differs")


def _same_tensor(a: Weight, b: Weight) -> bool:
    if a is b:
        return True
    return a.dtype is b.dtype and a.shape == b.shape and _equal_arrays(a.numpy(), b.numpy())


def _graphs(a: Graph, b: Graph, where: str, origins: bool, found: list[str]) -> None:
    if len(a) != len(b) or len(a.inputs) != len(b.inputs) or len(a.outputs) != len(b.outputs):
        found.append(
            f"{where}graph: {len(a.inputs)} inputs, {len(a)} nodes, {len(a.outputs)} outputs and "
            f"{len(b.inputs)}, {len(b)}, {len(b.outputs)}"
        )
        return
    pairs: dict[Value, Value] = {}
    for left, right in zip(a.inputs, b.inputs, strict=True):
        _values(left, right, f"{where}input", pairs, found)
    for node, other in zip(a, b, strict=True):
        _nodes(node, other, where, origins, pairs, found)
    if a.output_names != b.output_names:
        found.append(f"{where}output names: {a.output_names} and {b.output_names}")
    if [pairs.get(value) for value in a.outputs] != list(b.outputs):
        found.append(f"{where}outputs are other values")


def _nodes(
    a: Node, b: Node, where: str, origins: bool, pairs: dict[Value, Value], found: list[str]
) -> None:
    at = f"{where}{a!r}"
    if a.op is not b.op or len(a.outputs) != len(b.outputs) or len(a.bodies) != len(b.bodies):
        found.append(f"{at}: the other is {b!r}")
        return
    if [None if v is None else pairs.get(v) for v in a.inputs] != list(b.inputs):
        found.append(f"{at}: other operands")
    for name, value in a.attrs.items():
        if not _equal(value, b.attrs.get(name)):
            found.append(f"{at}: `{name}` is {value} and {b.attrs.get(name)}")
    if origins and a.loc != b.loc:
        found.append(f"{at}: origins {a.loc} and {b.loc}")
    for left, right in zip(a.outputs, b.outputs, strict=True):
        _values(left, right, at, pairs, found)
    for body, other in zip(a.bodies, b.bodies, strict=True):
        _graphs(body, other, f"{at} body: ", origins, found)


def _values(a: Value, b: Value, where: str, pairs: dict[Value, Value], found: list[str]) -> None:
    pairs[a] = b
    if (a.name, a.type) != (b.name, b.type):
        found.append(f"{where}: {a!r} and {b!r}")
    if a.content != b.content:
        found.append(f"{where}: {a!r} has content {a.content} and {b.content}")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and _equal_arrays(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)  # NaN equals itself, the zeros differ
    return type(a) is type(b) and bool(a == b)


def _equal_arrays(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.shape != b.shape or (a.dtype.kind not in "OUS" and a.dtype != b.dtype):
        return False
    if a.dtype.kind in "OUS":
        return bool(a.reshape(-1).tolist() == b.reshape(-1).tolist())
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
