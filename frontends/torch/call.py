"""What an importer of one ATen overload works with, and the table of importers.

An importer translates one call of an overload, whose arguments are named by its schema, into IR
operators. In-place overloads, views and buffer updates never reach it: the functionalizer asks for
the functional overload and rebinds the aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike
from regraft.ir.graph import Value
from regraft.ir.ops.cast import cast
from regraft.ir.ops.fill import range_
from regraft.ir.ops.reshaping import reshape
from regraft.ir.types import DType, TensorType


class UnsupportedCallError(Exception):
    """The importer has no IR form for this variant; PyTorch's decomposition is tried next.

    Args:
        reason: What about the call is not supported, for the report of unsupported overloads.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class CallImport:
    """One call of an ATen overload under import.

    Attributes:
        target: The overload, `aten.linear.default`.
        args: Arguments by schema name, defaults filled in. Tensors are `Value`s, symbolic sizes
            `Dim`s, lists are tuples, `torch.dtype` is `DType`; absent tensors are None.
        results: Types of the results as the export inferred them (sizes as IR dims).
        b: Builder at the end of the graph under construction; its `loc` is the call's.
    """

    target: str
    args: Mapping[str, Any]
    results: Sequence[TensorType]
    b: Builder

    def value(self, name: str) -> Value:
        """Returns a tensor argument that must be present."""
        found = self.args[name]
        if isinstance(found, bool | int | float):  # a decomposition computes with it as a tensor
            return self.b.constant(np.asarray(found), self.dtype)
        if not isinstance(found, Value):
            raise UnsupportedCallError(f"argument `{name}` is {found!r}, not a tensor")
        return found

    def optional(self, name: str) -> Value | None:
        """Returns a tensor argument or None."""
        found = self.args[name]
        return found if isinstance(found, Value) else None

    def values(self, name: str) -> tuple[Value, ...]:
        """Returns a list of tensors."""
        return tuple(self.args[name])

    def attr(self, name: str) -> Any:
        """Returns an argument that is not a tensor (its default when it was not given)."""
        return self.args.get(name)

    def sizes(self, name: str) -> tuple[DimLike, ...]:
        """Returns a list of sizes or steps; one number counts as a list of one."""
        found = self.args[name]
        return tuple(found) if isinstance(found, Sequence) else (found,)

    @property
    def dtype(self) -> DType:
        """Element type of the first result."""
        dtype = self.results[0].dtype
        if dtype is None:
            raise UnsupportedCallError("the export gives no element type")
        return dtype

    @property
    def shape(self) -> tuple[DimLike, ...]:
        """Sizes of the first result."""
        shape = self.results[0].shape
        if shape is None:
            raise UnsupportedCallError("the export gives no shape")
        return tuple(shape)

    def cast(self, value: Value, dtype: DType) -> Value:
        """Returns the value in an element type; the IR promotes nothing by itself."""
        return value if value.dtype is dtype else self.b.op(cast, value, to=dtype)

    def operand(self, name: str, dtype: DType | None = None) -> Value:
        """Returns a tensor or number argument as a value of an element type.

        Args:
            name: Argument name.
            dtype: Element type; default: the first result's.
        """
        wanted = self.dtype if dtype is None else dtype
        found = self.args[name]
        if isinstance(found, Value):
            return self.cast(found, wanted)
        return self.number(found, wanted)

    def number(self, number: complex | DimLike, dtype: DType) -> Value:
        """Returns a number or size as a scalar of an element type."""
        if isinstance(number, Dim):
            return self.cast(size_value(self.b, number), dtype)
        with np.errstate(over="ignore"):  # beyond the type's range is infinity, as in PyTorch
            return self.b.constant(np.asarray(number), dtype)

    def axis(self, name: str, rank: int) -> int:
        """Returns an axis argument counted from the front."""
        found = int(self.args[name])
        return found + rank if found < 0 else found


def size_value(b: Builder, dim: DimLike) -> Value:
    """Returns a size as a tensor: `i64[]` whose content is the size."""
    if isinstance(dim, int):
        return b.constant(np.asarray(dim), DType.I64)
    # a range of one element: the only operator that makes a tensor of a size expression
    one = b.op(range_, start=dim, limit=dim + 1, delta=1, dtype=DType.I64)
    return b.op(reshape, one, shape=())


Imported = Value | Sequence[Value | None]
Importer = Callable[[CallImport], Imported]


@dataclass(frozen=True, slots=True)
class Import:
    """An importer and the overloads that it takes.

    Args:
        importer: Returns the results in the order of the schema.
        targets: Overloads, `aten.add.Tensor`.
    """

    importer: Importer
    targets: tuple[str, ...]


def row(importer: Importer, *targets: str) -> Import:
    """Returns a row of the table."""
    return Import(importer, targets)


class ImportTable:
    """Importers by overload."""

    def __init__(self, *families: tuple[Import, ...]) -> None:
        self._rows: dict[str, Importer] = {}
        for family in families:
            for item in family:
                for target in item.targets:
                    if target in self._rows:
                        raise ValueError(f"two importers for {target}")
                    self._rows[target] = item.importer

    def find(self, target: str) -> Importer | None:
        """Returns the importer of an overload, or None."""
        return self._rows.get(target)

    def __contains__(self, target: str) -> bool:
        return target in self._rows

    def targets(self) -> Sequence[str]:
        """Returns every overload that has an importer."""
        return tuple(self._rows)
