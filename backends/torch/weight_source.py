"""Writes weights and constants as expressions, and the lines of `__init__` that register them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from regraft.backends.torch.naming import is_identifier
from regraft.backends.torch.tensors import torch_dtype
from regraft.backends.torch.weight_plan import Slot, WeightPlan, containers
from regraft.ir.steps import Concat, Reshape, Slice, Source, Transpose, Tree, describe
from regraft.ir.types import DType, dtype_of
from regraft.ir.weights import ArrayWeight, Role

_INLINE_ELEMENTS = 16
_LARGE_PART = 4


class WeightSource:
    """The tensors of a module as source; constants join as emission meets them."""

    def __init__(self, plan: WeightPlan) -> None:
        self.plan = plan
        self._constants: dict[Any, Slot] = {}
        self._sizes: Counter[str] = Counter()

    def is_large(self, path: str) -> bool:
        """Returns whether a part of the model holds so many tensors that it needs a variable."""
        if not self._sizes:
            for slot_path in self.plan.slots:
                parts = slot_path.split(".")
                self._sizes.update(".".join(parts[:i]) for i in range(1, len(parts)))
        return self._sizes[path] >= _LARGE_PART

    def holds(self, name: str) -> bool:
        """Returns whether the module registers a stored weight, or what it is made of."""
        return next(self.plan.leaves(self.plan.trees[name]), None) is not None

    def stored(self, name: str) -> str:
        """Returns the expression of a stored weight."""
        return self._tree(self.plan.trees[name])

    def transposed(self, name: str) -> str:
        """Returns the expression of the transpose of a stored matrix: the parameter itself often.

        A weight that is the transpose of a parameter gives the parameter.
        """
        tree = self.plan.trees[name]
        if isinstance(tree, Transpose) and tree.perm == (1, 0) and tree not in self.plan.held:
            return self._tree(tree.x)
        return f"{self._tree(tree)}.t()"

    def owner(self, name: str) -> str | None:
        """Returns the last name of the part that a stored `….query.weight` belongs to, or None."""
        leaf = next(self.plan.leaves(self.plan.trees[name]), None)
        parts = [] if leaf is None else leaf.path.split(".")
        if len(parts) < 2 or parts[-1] != "weight" or not is_identifier(parts[-2]):
            return None
        return parts[-2].lower()

    def constant(self, array: np.ndarray[Any, Any], hint: str) -> str:
        """Returns the expression of a constant, one for equal contents."""
        dtype = dtype_of(array)
        key = (dtype, array.shape, array.tobytes())
        slot = self._constants.get(key)
        if slot is None:
            weight = ArrayWeight(array)
            slot = self.plan.add(hint, Source(hint, weight), Role.CONST, weight)
            self._constants[key] = slot
        return attribute(slot.path)

    def _tree(self, tree: Tree) -> str:
        slot = self.plan.held.get(tree)
        if slot is not None:
            return attribute(slot.path)
        match tree:
            case Transpose(x, perm):
                inner = self._tree(x)
                return f"{inner}.t()" if perm == (1, 0) else f"{inner}.permute{perm}"
            case Reshape(x, shape):
                return f"{self._tree(x)}.reshape({', '.join(map(str, shape)) or '()'})"
            case Slice(x, axis, start, stop, _):
                size = describe(x)[1][axis]
                last = "" if stop == size else str(stop)
                part = ":, " * axis + f"{start or ''}:{last}"
                return f"{self._tree(x)}[{part}]"
            case Concat(xs, axis):
                items = ", ".join(map(self._tree, xs))
                return f"torch.cat(({items}), {axis})"
            case _:
                raise AssertionError(f"no slot holds {type(tree).__name__}")


def attribute(path: str, root: str = "self") -> str:
    """Returns the expression of a dotted path: `self.layer[0].weight`."""
    text = root
    for part in path.split("."):
        if is_identifier(part):
            text += f".{part}"
        else:
            text += f"[{part}]" if part == str(_int_or_none(part)) else f"[{part!r}]"
    return text


def _int_or_none(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def registrations(plan: WeightPlan, elsewhere: Collection[str] = ()) -> list[str]:
    """Returns the lines of `__init__`.

    Args:
        plan: The tensors.
        elsewhere: Paths of parts that register their own.
    """
    lines = []
    for path, slot in plan.slots.items():
        if any(prefix in elsewhere for prefix in containers(path)):
            continue
        arguments = [f"self, {quoted(path)}, {slot.shape}"]
        if slot.dtype is not DType.F32:
            arguments.append(str(torch_dtype(slot.dtype)))
        if is_inline(slot):
            lines.append(f"constant(self, {quoted(path)}, {_initial(slot)})")
        else:
            function = "parameter" if slot.is_trainable else "buffer"
            if slot.role is Role.CONST:
                function = "stored_constant"
            lines.append(f"{function}({', '.join(arguments)})")
    lines += [f"tie(self, {quoted(path)}, {quoted(other)})" for path, other in plan.ties.items()]
    return lines


def quoted(text: str) -> str:
    """Returns a string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def is_inline(slot: Slot) -> bool:
    """Returns whether the content of a slot stands in the source."""
    return slot.role is Role.CONST and math.prod(slot.shape) <= _INLINE_ELEMENTS


def _initial(slot: Slot) -> str:
    dtype = torch_dtype(slot.dtype)
    if not math.prod(slot.shape):
        return f"torch.empty({slot.shape}, dtype={dtype})"
    array = slot.weight.numpy()
    if slot.dtype.is_float:
        array = array.astype(np.float64)
    elif slot.dtype.bits < 8:
        array = array.astype(np.int8)
    return f"torch.tensor({python_literal(array.tolist())}, dtype={dtype})"


def python_literal(value: Any) -> str:
    """Returns the source of nested lists of numbers; infinities and NaN as `torch.inf`, `nan`."""
    if isinstance(value, list):
        return f"[{', '.join(map(python_literal, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return "torch.nan" if math.isnan(value) else f"{'-' * (value < 0)}torch.inf"
    return repr(value)
