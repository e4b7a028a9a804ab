"""Names of graph inputs and outputs: the paths of their leaves in the user's arguments."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from regraft.ir.call_form import Kind, Nest, Special, children

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


def output_nest(spec: pytree.TreeSpec, leaves: Sequence[Nest]) -> Nest:
    """Returns the result of the module with its leaves: names of outputs, or constants."""
    return nest_of(spec, iter(leaves))


def call_nests(
    program: torch.export.ExportedProgram, leaves: Sequence[Nest], positional: Sequence[str] | None
) -> list[tuple[str, str, Nest]]:
    """Returns the parameters of the captured call: name, kind, what lies in each.

    Args:
        program: The program, whose interface is known.
        leaves: Name of the graph input, or the constant, by leaf of the arguments.
        positional: The parameters of `forward` that may be given by position, in order; None
            when that is not known.
    """
    call = program.module_call_graph[0].signature
    if call is None:
        return []
    given = iter(leaves)
    args, kwargs = call.in_spec.children()
    names = list(call.forward_arg_names or ())
    nests: dict[str, Nest] = {}
    for i, spec in enumerate(args.children()):
        nests[names[i] if i < len(names) else f"arg{i}"] = nest_of(spec, given)
    num_args = len(nests)
    nests |= {k: nest_of(spec, given) for k, spec in zip(kwargs.context, kwargs.children(),
                                                         strict=True)}  # fmt: skip
    order = list(nests)[:num_args]
    for name in (positional or ())[num_args:]:
        if name not in nests:
            break  # what follows it cannot be given by position
        order.append(name)
    return [(name, Kind.POSITIONAL.value, nests[name]) for name in order] + [
        (name, Kind.KEYWORD.value, nest) for name, nest in nests.items() if name not in order
    ]


def constant(value: Any) -> Nest:
    """Returns the nest of a leaf that is no tensor."""
    return {"": Special.TEXT.value, "value": value} if isinstance(value, str) else value


def nest_of(spec: pytree.TreeSpec, leaves: Iterator[Nest]) -> Nest:
    """Returns a tree of arguments or results as a nest, with these leaves."""
    # not by `tree_unflatten`: caches and classes of the user's own hold tensors, no names
    if spec.is_leaf():
        return next(leaves)
    inner = [nest_of(child, leaves) for child in spec.children()]
    type_, context = spec.type, spec.context
    if type_ is tuple:
        return tuple(inner)
    if type_ is list:
        return {"": Special.LIST.value, "items": tuple(inner)}
    steps = _steps(type_, context, len(inner))
    if type_ in (dict, OrderedDict, defaultdict):
        keys = context[1] if type_ is defaultdict else context
        if all(isinstance(key, str) and key for key in keys):
            return dict(zip(keys, inner, strict=True))
        if all(isinstance(key, bool | int | float) for key in keys):
            return {"": Special.DICT.value, "keys": tuple(keys), "items": tuple(inner)}
        return dict(zip(steps, inner, strict=True))
    return _object(context if type_ is pytree.namedtuple else type_, context, steps, inner)


def _object(type_: Any, context: Any, steps: list[str], inner: list[Nest]) -> Nest:
    """Returns the nest of an object of a class."""
    form: dict[str, Any] = {"class": f"{type_.__module__}:{type_.__qualname__}"}
    fields = dict(zip(steps, inner, strict=True))
    if type_.__name__ == "DynamicCache" and set(steps) == set(_CACHE_FIELDS):
        keys, values = (children(fields[name]) for name in _CACHE_FIELDS)
        layers = tuple(zip(keys, values, strict=True))
        return {"": Special.CACHE.value, **form, "layers": layers}
    if type_.__name__ == "EncoderDecoderCache":
        return {"": Special.TUPLE.value, **form, "fields": fields}
    if issubclass(type_, tuple):
        is_struct = not hasattr(type_, "_fields")
        return {"": (Special.STRUCT if is_struct else Special.TUPLE).value, **form,
                "fields": fields}  # fmt: skip
    if is_dataclass(type_):
        # fields that are None are no children
        empty = context[1] if isinstance(context, list | tuple) and len(context) > 1 else ()
        if isinstance(empty, list | tuple):
            known = {field.name for field in dataclass_fields(type_)}
            fields |= {str(name): None for name in empty if name in known and name not in fields}
        return {"": Special.OBJECT.value, **form, "fields": fields}
    return {"": Special.NODE.value, **form, "fields": fields}


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
