"""What the schema of an overload says: argument names, defaults, and what it writes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema of one overload.

    Attributes:
        name: `aten.linear.default`.
        arg_names: Argument names in order.
        defaults: Default values by name.
        written: Names of the arguments that the call writes to.
        num_results: Number of results.
        is_list: Whether the only result is a list of tensors.
    """

    name: str
    arg_names: tuple[str, ...]
    defaults: Mapping[str, Any]
    written: tuple[str, ...]
    num_results: int
    is_list: bool

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments by name, defaults filled in."""
        bound = dict(self.defaults)
        bound.update(zip(self.arg_names, args, strict=False))
        bound.update(kwargs)
        return bound


class Schemas:
    """Schemas by overload, each read once."""

    def __init__(self) -> None:
        self._known: dict[OpOverload, Schema] = {}

    def of(self, target: OpOverload) -> Schema:
        """Returns the schema of an overload."""
        found = self._known.get(target)
        if found is None:
            found = self._known[target] = _read(target)
        return found


def _read(target: OpOverload) -> Schema:
    schema = target._schema
    names, defaults, written = [], {}, []
    for arg in schema.arguments:
        names.append(arg.name)
        if arg.has_default_value():
            defaults[arg.name] = arg.default_value
        if arg.alias_info is not None and arg.alias_info.is_write:
            written.append(arg.name)
    returns = schema.returns
    is_list = len(returns) == 1 and isinstance(returns[0].type, torch.ListType)
    return Schema(str(target), tuple(names), defaults, tuple(written), len(returns), is_list)


def functional_name(target: OpOverload) -> str | None:
    """Returns the name of the overload that computes what an in-place or out one writes.

    `aten.add_.Tensor` and `aten.add.out` -> `aten.add.Tensor`; None for one that is neither.
    """
    namespace, _, name = target._schema.name.partition("::")
    overload = target._overloadname
    if overload == "out":
        known = getattr(getattr(torch.ops, namespace), name).overloads()
        return f"{namespace}.{name}.{'Tensor' if 'Tensor' in known else 'default'}"
    if overload.endswith("_out"):
        return f"{namespace}.{name}.{overload.removesuffix('_out')}"
    if name.startswith("__i") and name.endswith("__"):  # `__ior__` -> `__or__`
        return f"{namespace}.__{name[3:]}.{overload}"
    if not name.endswith("_") or name.endswith("__"):
        return None
    return f"{namespace}.{name[:-1]}.{overload}"
