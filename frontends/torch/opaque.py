"""Calls that are carried through as they are: `opaque` nodes of dialect `torch:acme`, `torch:aten`.

Custom operators are where the user asks for it, PyTorch's own where the IR has no form for them:
PyTorch computes them, and every other target refuses the module with their lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.ops.complex_numbers import is_complex
from regraft.frontends.torch.schemas import Schema
from regraft.frontends.torch.sizes import Sizes
from regraft.ir.builder import Builder
from regraft.ir.constants import opaque
from regraft.ir.graph import Value
from regraft.ir.types import DType, TensorType

OPERANDS = "operands"
"""First attribute: the argument that each operand is given as; `xs*` for one of a list."""

IS_LIST = "is_list"
"""Second attribute: whether the results come as one list."""


def import_opaque(
    b: Builder, schema: Schema, args: Mapping[str, Any], results: Sequence[TensorType]
) -> Sequence[Value] | None:
    """Returns the results of a call as those of an opaque node.

    None for a call that no node can hold: one that writes to its arguments, gives no tensors, or
    takes sizes that only run time knows.
    """
    if schema.written or not results:
        return None
    operands: list[Value] = []
    names: list[str] = []
    attributes: list[tuple[str, Any]] = []
    for name, arg in args.items():
        items = arg if isinstance(arg, tuple) else (arg,)
        if items and all(isinstance(item, Handle) for item in items):
            operands += [item.read() for item in items]
            names += [f"{name}*" if isinstance(arg, tuple) else name] * len(items)
        elif not _is_plain(arg):
            return None
        elif arg != schema.defaults.get(name):
            attributes.append((name, arg))
    node = b.node(
        opaque, *operands, num_outputs=len(results), op_type=schema.name,
        dialect=f"torch:{schema.name.partition('.')[0]}",
        attributes=((OPERANDS, tuple(names)), (IS_LIST, schema.is_list), *attributes),
    )  # fmt: skip
    for value, type_ in zip(node.outputs, results, strict=True):
        value.type = type_
    return node.outputs


def is_kept(
    schema: Schema, args: Mapping[str, Any], results: Sequence[TensorType], sizes: Sizes
) -> bool:
    """Returns whether a call of PyTorch's own that has no IR form is carried through.

    It gives the same in another memory layout, has no complex numbers, which are pairs in the IR,
    and all sizes of its results are known.
    """
    if not schema.name.startswith("aten.") or schema.name in _OF_LAYOUT:
        return False
    handles = [
        item
        for arg in args.values()
        for item in (arg if isinstance(arg, tuple) else (arg,))
        if isinstance(item, Handle)
    ]
    types = [*results, *(handle.type for handle in handles)]
    if any(is_complex(handle.read()) for handle in handles):
        return False
    return all(
        type_.dtype is not None
        and not type_.dtype.is_complex
        and not any(map(sizes.is_expected, type_.shape or ()))
        for type_ in types
    )


_OF_LAYOUT = frozenset(
    {"aten.as_strided.default", "aten.as_strided_copy.default", "aten.as_strided_scatter.default",
     "aten.stride.int", "aten.is_contiguous.default"}
)  # fmt: skip
"""Calls whose result depends on how their operand lies in memory, which the IR does not know."""


def _is_plain(arg: Any) -> bool:
    """Whether an argument is the same in every run, and the text form can say it."""
    if isinstance(arg, tuple):
        return all(map(_is_plain, arg))
    return arg is None or isinstance(arg, bool | int | float | str | DType)
