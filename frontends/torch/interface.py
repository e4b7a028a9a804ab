"""Names of graph inputs and outputs: the paths of their leaves in the user's arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

Path = tuple[str, ...]

_CACHE_FIELDS = {"key_cache": "key", "value_cache": "value"}


def leaf_paths(spec: pytree.TreeSpec) -> list[Path]:
    """Returns the path of every leaf of a tree of arguments, in order."""
    return [_readable(path) for path in _paths(spec, ())]


def _paths(spec: pytree.TreeSpec, prefix: Path) -> list[Path]:
    if spec.is_leaf():
        return [prefix]
    children = spec.children()
    steps = _steps(spec.type, spec.context, len(children))
    return [
        path
        for step, child in zip(steps, children, strict=True)
        for path in _paths(child, (*prefix, step))
    ]


def _steps(type_: Any, context: Any, count: int) -> list[str]:
    """Returns the names of the children of a node: keys, fields, else their numbers."""
    fields = getattr(type_, "_fields", None) if type_ is not None else None
    if fields is None and type_ is pytree.namedtuple:
        fields = context._fields
    # dicts and model outputs keep their keys, data classes and caches keep them first
    candidates = [fields, context, context[0] if isinstance(context, list | tuple) and context
                  else None]  # fmt: skip
    for names in candidates:
        if not isinstance(names, list | tuple) or len(names) != count:
            continue
        if all(isinstance(name, str | int) for name in names):
            return [str(name) for name in names]
    return [str(i) for i in range(count)]


def _readable(path: Path) -> Path:
    """Puts the layer before the field of a cache: `key_cache.0` is `0.key`."""
    for i, step in enumerate(path[:-1]):
        field = _CACHE_FIELDS.get(step)
        if field is not None and path[i + 1].isdigit():
            return (*path[:i], path[i + 1], field, *path[i + 2 :])
    return path


def input_names(program: torch.export.ExportedProgram) -> list[str]:
    """Returns a name for every leaf of the user's arguments, in order."""
    call = program.module_call_graph[0].signature
    if call is None:
        return [str(name) for name in program.graph_signature.user_inputs]
    names = list(call.forward_arg_names or ())
    result = []
    for top, *rest in leaf_paths(call.in_spec):
        position, *inner = rest
        if top == "0":  # positional arguments, by number
            index = int(position)
            position = names[index] if index < len(names) else f"arg{index}"
        result.append(".".join((position, *inner)))
    return _unique(result, ())


def output_names(program: torch.export.ExportedProgram, taken: Sequence[str]) -> list[str]:
    """Returns a name for every leaf of the result, in order; none of them names an input."""
    call = program.module_call_graph[0].signature
    if call is None:
        return _unique(
            [f"output.{i}" for i in range(len(program.graph_signature.user_outputs))], taken
        )
    result = []
    for path in leaf_paths(call.out_spec):
        if not path or path[0].isdigit():
            path = ("output", *path)
        result.append(".".join(path))
    return _unique(result, taken)


def output_nest(spec: pytree.TreeSpec, names: Mapping[int, str]) -> Any:
    """Returns the result of the module with names of outputs as leaves.

    Sequences are tuples, mappings and `transformers` results are dicts; a leaf that is no output
    is None.

    Args:
        spec: The structure of the result.
        names: Name of the output by leaf.
    """
    return _nest(spec, iter([names.get(i) for i in range(spec.num_leaves)]))


def _nest(spec: pytree.TreeSpec, leaves: Iterator[str | None]) -> Any:
    # not by `tree_unflatten`: caches and classes of the user's own hold tensors, no names
    if spec.is_leaf():
        return next(leaves)
    children = [_nest(child, leaves) for child in spec.children()]
    steps = _steps(spec.type, spec.context, len(children))
    # what stands for all named tuples is no class: a function
    kind = spec.type if isinstance(spec.type, type) else tuple
    if issubclass(kind, tuple):
        return tuple(children)
    if all(step.isdigit() for step in steps) and not issubclass(kind, Mapping):
        return tuple(children)
    return dict(zip(steps, children, strict=True))


def _unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Returns the names, those of inputs as what follows them: `past_key_values` -> `present`."""
    used = set(taken)
    result = []
    for name in names:
        head, dot, rest = name.partition(".")
        unique = name
        if name in used and head == "past_key_values":
            unique = f"present{dot}{rest}"
        elif name in used:
            unique = f"{name}.out"
        number = 1
        while unique in used:
            number += 1
            unique = f"{name}.{number}"
        used.add(unique)
        result.append(unique)
    return result
