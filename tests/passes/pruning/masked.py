"""The masked model: what pruning must equal, computed without the slicer.

Every value of the dense module is zeroed where the plan drops positions, as soon as it is computed,
and normalizations, means and extremes count kept positions only. Positions are read from the plan's
document; nothing here asks the code that slices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.analysis.coupling.groups import places_of
from regraft.passes.pruning.plan import parse_ranges

Array = np.ndarray[Any, Any]
Form = Any  # ("product" | "sum", [forms]) or a token

_TOKEN = re.compile(r"[()+]|[^\s()+]+")
_NORMS = ("layer_norm", "rms_norm")
_REDUCTIONS: Mapping[str, tuple[Any, float]] = {
    "reduce_mean": (np.sum, 0.0), "reduce_max": (np.max, -np.inf), "reduce_min": (np.min, np.inf),
}  # fmt: skip
"""How kept positions are folded, and what dropped ones count as."""


def parse_form(text: str) -> Form:
    """Parses `((g0 4) + g1)`."""
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            items = stack.pop()
            kind = "sum" if "+" in items else "product"
            stack[-1].append((kind, [item for item in items if item != "+"]))
        else:
            stack[-1].append(token)
    assert len(stack) == 1
    assert len(stack[0]) == 1
    return stack[0][0]


class Masks:
    """Which positions of an axis are kept, from the document of a plan."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.sizes: dict[str, int] = {g["name"]: g["size"] for g in document["groups"]}
        self.kept = {
            g["name"]: [set(parse_ranges(r)) for r in g["kept"]] for g in document["groups"]
        }

    def axis(self, form: Form, size: int) -> Array:
        """Returns bool[size]; one factor of unknown size takes what the others leave."""
        if isinstance(form, str):
            assert not form.endswith("*")
            return self._leaf(form, 0, size)
        kind, items = form
        if kind == "product":  # neighbours that are not pruned are one factor: `(B S g3)`
            items = [item for i, item in enumerate(items) if items[i : i + 2] != ["?", "?"]]
        if kind == "sum":
            return np.concatenate([self.axis(item, self.size(item)) for item in items])
        sizes = [self.size(item) for item in items]
        unknown = [i for i, s in enumerate(sizes) if s < 0]
        for i in unknown:
            assert len(unknown) == 1
            sizes[i] = size // math.prod(s for s in sizes if s > 0)
        mask = np.ones(sizes, bool)
        for i, item in enumerate(items):
            shape = [-1 if j == i else 1 for j in range(len(sizes))]
            if isinstance(item, str) and item.endswith("*"):
                mask &= self._per_block(item[:-1], sizes, i)
            else:
                mask &= self.axis(item, sizes[i]).reshape(shape)
        return mask.reshape(-1)

    def size(self, form: Form) -> int:
        """Returns the size of a form, -1 when it is symbolic."""
        if not isinstance(form, str):
            sizes = [self.size(item) for item in form[1]]
            if -1 in sizes:
                return -1
            return sum(sizes) if form[0] == "sum" else math.prod(sizes)
        name = form.rstrip("*")
        if name == "?":
            return -1
        return self.sizes.get(name) or (int(name) if name.isdecimal() else -1)

    def _leaf(self, name: str, row: int, size: int) -> Array:
        rows = self.kept.get(name)
        return np.array([rows is None or i in rows[row] for i in range(size)])

    def _per_block(self, name: str, sizes: list[int], place: int) -> Array:
        """The blocks that choose for themselves are the factors right before."""
        rows = self.kept[name]
        first, count = place, 1
        while count < len(rows):
            first -= 1
            count *= sizes[first]
        assert count == len(rows)
        mask = np.stack([self._leaf(name, row, sizes[place]) for row in range(count)])
        shape = [s if first <= i <= place else 1 for i, s in enumerate(sizes)]
        return mask.reshape(shape)


def run_masked(
    coupling: Coupling, document: Mapping[str, Any], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the outputs of the dense module with the dropped positions of a plan zeroed, in f64.

    Args:
        coupling: Of the dense module.
        document: The plan, as JSON.
        inputs: Arrays by name.
    """
    masks = Masks(document)
    forms: dict[Value, dict[int, Form]] = {}
    for name, value in places_of(coupling):
        producer = value.producer
        table = document["values"]
        if producer is not None and producer.op.name == "weight":
            table = document["weights"]
            aliases = coupling.module.weights.aliases
            name = aliases.get(producer.attrs["name"], producer.attrs["name"])
        if name in table:
            forms[value] = {item["axis"]: parse_form(item["of"]) for item in table[name]}

    seen: dict[Value, Array] = {}

    def mask_of(value: Value, axis: int, size: int, rank: int) -> Array:
        form = forms.get(value, {}).get(axis)
        flat = np.ones(size, bool) if form is None else masks.axis(form, size)
        return flat.reshape([-1 if i == axis else 1 for i in range(rank)])

    def observe(value: Value, array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return None
        producer = value.producer
        if producer is not None and value.index == 0:
            if producer.op.name in (*_NORMS, "group_norm"):
                array = _norm(producer, seen, mask_of)
            elif producer.op.name in _REDUCTIONS and producer.inputs[0] in forms:
                array = _reduced(producer, seen, mask_of, array.shape)
        for axis in forms.get(value, {}):
            keep = mask_of(value, axis, array.shape[axis], array.ndim)
            array = np.where(keep, array, np.zeros((), array.dtype))
        seen[value] = array
        return array

    seen.update((value, inputs[str(value.name)]) for value in coupling.module.graph.inputs)
    return evaluate(coupling.module, inputs, oracle=True, observe=observe)


def _norm(node: Any, seen: Mapping[Value, Array], mask_of: Any) -> Array:
    """Returns a normalization whose statistics are those of the kept positions."""
    x = seen[node.inputs[0]].astype(np.float64)
    gain = seen[node.inputs[1]]
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = seen[node.inputs[2]] if has_bias else np.zeros(())
    if node.op.name == "group_norm":
        keep = np.broadcast_to(mask_of(node.inputs[0], 1, x.shape[1], x.ndim), x.shape)
        blocks = (x.shape[0], node.attrs["groups"], -1)
        normal = _standardize(x.reshape(blocks), keep.reshape(blocks), (2,), node.attrs["epsilon"])
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        shift = bias.reshape(per_channel)
        return np.asarray(normal.reshape(x.shape) * gain.reshape(per_channel) + shift)
    axes = tuple(range(node.attrs["axis"] % x.ndim, x.ndim))
    keep = np.ones(x.shape, bool)
    for axis in axes:
        keep = keep & mask_of(node.inputs[0], axis, x.shape[axis], x.ndim)
    centre = node.op.name == "layer_norm"
    normal = _standardize(x, keep, axes, node.attrs["epsilon"], centre=centre)
    return np.asarray(normal * gain + bias)


def _reduced(node: Any, seen: Mapping[Value, Array], mask_of: Any, shape: Any) -> Array:
    """Returns a reduction over the kept positions alone."""
    x = seen[node.inputs[0]].astype(np.float64)
    axes = node.attrs["axes"]
    axes = tuple(range(x.ndim)) if axes is None else tuple(axis % x.ndim for axis in axes)
    keep = np.ones(x.shape, bool)
    for axis in axes:
        keep = keep & mask_of(node.inputs[0], axis, x.shape[axis], x.ndim)
    fold, start = _REDUCTIONS[node.op.name]
    result = fold(np.where(keep, x, start), axis=axes)
    if node.op.name == "reduce_mean":
        result = result / np.maximum(keep.sum(axes), 1)
    return np.asarray(result).reshape(shape)


def _standardize(
    x: Array, keep: Array, axes: tuple[int, ...], epsilon: float, *, centre: bool = True
) -> Array:
    count = np.maximum(keep.sum(axes, keepdims=True), 1)
    mean = np.where(keep, x, 0).sum(axes, keepdims=True) / count if centre else 0.0
    square = np.where(keep, np.square(x - mean), 0).sum(axes, keepdims=True) / count
    return np.asarray((x - mean) / np.sqrt(square + epsilon))
