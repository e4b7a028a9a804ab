"""Dynamic axes as the user states them: names, hints, and whether the export kept them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.export import Dim
from torch.export.dynamic_shapes import _combine_args, _tree_map_with_path
from torch.utils import _pytree as pytree

from regraft.frontends.torch.caches import spread
from regraft.ir.errors import InputError, UsageError


@dataclass(frozen=True, slots=True)
class DynamicAxis:
    """One axis that the user called dynamic.

    Args:
        leaf: Which leaf of the arguments has it.
        axis: The axis.
        name: The user's name of its size, or None.
        label: `input_ids axis 0`, for messages.
    """

    leaf: int
    axis: int
    name: str | None
    label: str


@dataclass(frozen=True, slots=True)
class DynamicAxes:
    """All dynamic axes, and what `torch.export` is told of them.

    Args:
        shapes: `dynamic_shapes` of `torch.export.export`; names are hints there.
        axes: The axes that must stay dynamic.
    """

    shapes: Any
    axes: Sequence[DynamicAxis]

    def names(self, values: Sequence[Any]) -> dict[sympy.Symbol, str]:
        """Returns the user's names of the symbols of an export.

        Args:
            values: Fake tensors of the leaves of the arguments, in order.

        Raises:
            InputError: When an axis that the user called dynamic came back constant.
        """
        names: dict[sympy.Symbol, str] = {}
        fixed = []
        for item in self.axes:
            size = values[item.leaf].shape[item.axis]
            expr = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
            if expr.is_number:
                fixed.append(f"{item.label} is always {expr}")
            elif item.name is not None and expr.is_Symbol:
                names.setdefault(expr, item.name)
        if fixed:
            raise InputError(
                f"the export fixed sizes that were to be dynamic: {'; '.join(fixed)}",
                hint="the code asks for that size: leave the axis static, or change the code",
            )
        return names


def read_dynamic_shapes(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any
) -> DynamicAxes:
    """Returns the axes that the user called dynamic.

    Args:
        module: The module.
        args: Example positional arguments.
        kwargs: Example keyword arguments.
        shapes: What `torch.export.export` takes as `dynamic_shapes`; a name may stand for a `Dim`.

    Raises:
        InputError: When the example size of a dynamic axis is 0 or 1, or outside its range.
        UsageError: When `shapes` does not fit the arguments.
    """
    if not shapes:
        return DynamicAxes(None, ())
    leaves = {id(leaf): i for i, leaf in enumerate(pytree.tree_leaves((tuple(args), dict(kwargs))))}
    axes: list[DynamicAxis] = []
    small: list[str] = []
    outside: list[str] = []

    def visit(path: Any, leaf: Any, spec: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not spec:
            return None if isinstance(spec, Mapping) else spec  # axes given for a whole tree
        label = pytree.keystr(path).strip("[]'").replace("']['", ".").replace("'][", ".")
        by_axis = dict(enumerate(spec)) if isinstance(spec, tuple | list) else dict(spec)
        hints: dict[int, Any] = {}
        for axis, wanted in by_axis.items():
            hints[axis] = Dim.DYNAMIC if isinstance(wanted, str) else wanted
            name = _name_of(wanted)
            if name is None and not _must_stay(wanted):
                continue
            where = f"axis {axis} of `{label}`" + (f" (`{name}`)" if name else "")
            axes.append(DynamicAxis(leaves[id(leaf)], axis, name, where))
            if leaf.shape[axis] < 2:
                small.append(f"{where} has {leaf.shape[axis]}")
            elif isinstance(wanted, Dim) and not wanted.min <= leaf.shape[axis] <= wanted.max:
                limits = f"{wanted.min} to {wanted.max}"
                outside.append(f"{where} has {leaf.shape[axis]}, its range is {limits}")
        return hints

    try:
        combined = _combine_args(module, tuple(args), dict(kwargs))
        wanted = _by_name(shapes, combined)
        hints = _tree_map_with_path(visit, combined, wanted, tree_name="inputs")
    except AssertionError as error:  # PyTorch fails while it says which parts of a tree differ
        raise UsageError(
            "`dynamic_shapes` does not fit the arguments: they nest otherwise",
            hint="give {axis: Dim or name} for a whole argument: it stands for each of its tensors",
        ) from error
    except (torch._dynamo.exc.UserError, IndexError, TypeError, ValueError) as error:
        raise UsageError(
            f"`dynamic_shapes` does not fit the arguments: {str(error).splitlines()[0]}",
            hint="one entry per argument given: {name: {axis: Dim or name}} or None",
        ) from error
    if small:
        raise InputError(
            f"the example has too small a size on dynamic axes: {'; '.join(small)}",
            hint="give an example of size 2 or more there: sizes 0 and 1 are fixed by the export",
        )
    if outside:
        raise InputError(
            f"the example has sizes outside the ranges of its axes: {'; '.join(outside)}",
            hint="give an example within the range, or widen `Dim(name, min=…, max=…)`",
        )
    return DynamicAxes(hints, tuple(axes))


def _by_name(shapes: Any, combined: Mapping[str, Any]) -> Any:
    """Returns shapes keyed by argument name; arguments that it leaves out are static."""
    if isinstance(shapes, Mapping):
        unknown = [name for name in shapes if name not in combined]
        if unknown:
            raise ValueError(
                f"there is no argument `{unknown[0]}`, only {', '.join(map(str, combined))}"
            )
        return {name: _spread(shapes.get(name), arg) for name, arg in combined.items()}
    pairs = zip(combined.items(), shapes, strict=True)
    return {name: _spread(wanted, arg) for (name, arg), wanted in pairs}


def _spread(wanted: Any, arg: Any) -> Any:
    """Returns the axes of one tensor for every tensor of a tree, such as a cache."""
    is_axes = isinstance(wanted, Mapping) and all(isinstance(axis, int) for axis in wanted)
    if not is_axes or not wanted or isinstance(arg, torch.Tensor):
        return wanted
    return spread(pytree.tree_structure(arg), wanted)


def _name_of(wanted: Any) -> str | None:
    if isinstance(wanted, str):
        return wanted
    return wanted.__name__ if isinstance(wanted, Dim) else None


def _must_stay(wanted: Any) -> bool:
    return wanted is Dim.DYNAMIC or getattr(getattr(wanted, "type", None), "name", "") == "DYNAMIC"
