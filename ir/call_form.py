"""How tensors lie in the arguments and the result of a captured call, as plain data.

A *nest* is kept in `Module.meta` and survives the text form. It is

- a string: the graph input or output that is the leaf;
- None, a bool, an int or a float: a constant of the call;
- a tuple of nests;
- a dict of nests by key, none of which is empty;
- a dict whose key `""` says what else it is, beside the entries of `Special`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CALL = "torch.call"
"""Key of `Module.meta`: the parameters of the captured `forward`, each (name, kind, nest)."""

OUTPUTS = "torch.outputs"
"""Key of `Module.meta`: the nest that the captured `forward` returned."""

Nest = Any


class Special(StrEnum):
    """What a nest with the key `""` is."""

    LIST = "list"  # `items`
    DICT = "dict"  # `keys` that are no strings, `items`
    TEXT = "text"  # `value`: a constant string
    SIZE = "size"  # `name`: a leaf that is a Python integer
    OBJECT = "object"  # `class`, `fields`: made with keywords, read by attributes
    TUPLE = "named tuple"  # `class`, `fields`: made with positional arguments, read by attributes
    STRUCT = "struct"  # `class`, `fields`: made of one tuple, read by position
    CACHE = "cache"  # `class`, `layers`: pairs of keys and values
    NODE = "node"  # `class`, `fields`: children of a class that only its own functions make


class Kind(StrEnum):
    """How an argument is given."""

    POSITIONAL = "positional"
    KEYWORD = "keyword"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a captured `forward`.

    Args:
        name: Its name.
        kind: Whether it may be given by position.
        nest: What lies in it.
    """

    name: str
    kind: Kind
    nest: Nest


def special(nest: Nest) -> Special | None:
    """Returns what a nest with the key `""` is, None for other nests."""
    return Special(nest[""]) if isinstance(nest, Mapping) and "" in nest else None


def children(nest: Nest) -> list[Nest]:
    """Returns the nests directly inside a nest."""
    match special(nest):
        case Special.LIST | Special.DICT:
            return list(nest["items"])
        case Special.OBJECT | Special.TUPLE | Special.STRUCT | Special.NODE:
            return list(nest["fields"].values())
        case Special.CACHE:
            return [item for layer in nest["layers"] for item in layer]
        case Special.TEXT | Special.SIZE:
            return []
    if isinstance(nest, tuple | list):
        return list(nest)
    return list(nest.values()) if isinstance(nest, Mapping) else []


def leaves(nest: Nest) -> Iterator[str]:
    """Iterates over the names of the tensors and sizes in a nest, in order."""
    if isinstance(nest, str):
        yield nest
    elif special(nest) is Special.SIZE:
        yield nest["name"]
    for child in children(nest):
        yield from leaves(child)


def is_constant(nest: Nest) -> bool:
    """Returns whether nothing in a nest is a tensor or size."""
    return next(leaves(nest), None) is None


def parameters(meta: Mapping[str, Any]) -> tuple[Parameter, ...] | None:
    """Returns the parameters of the captured call of a module, or None."""
    found = meta.get(CALL)
    if found is None:
        return None
    return tuple(Parameter(name, Kind(kind), nest) for name, kind, nest in found)
