"""The result of a generated `forward` as source, and its tensors by name."""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from regraft.backends.torch.calling import literal
from regraft.backends.torch.library import calling
from regraft.backends.torch.library_source import LibrarySource
from regraft.backends.torch.weight_source import quoted
from regraft.ir.call_form import Nest, Special, leaves, special


@dataclass(slots=True)
class ResultSource:
    """Writes nests of results.

    Args:
        library: Gets functions and imports that the expressions need.
        is_file: Whether the source needs nothing but PyTorch: other classes are dicts and tuples.
        size: Returns the Python integer of an output that is a size.
    """

    library: LibrarySource
    is_file: bool
    size: Callable[[str], str]
    _classes: dict[str, str] = field(default_factory=dict)

    def text(self, nest: Nest, results: Mapping[str, str]) -> str:
        """Returns the expression of a nest; `results` are those of its leaves."""
        if isinstance(nest, str):
            return results[nest]
        kind = special(nest)
        match kind:
            case None:
                return self._plain(nest, results)
            case Special.TEXT:
                return literal(nest)
            case Special.SIZE:
                return self.size(nest["name"])
            case Special.LIST:
                return f"[{', '.join(self.text(item, results) for item in nest['items'])}]"
            case Special.DICT:
                pairs = zip(nest["keys"], nest["items"], strict=True)
                items = (f"{key!r}: {self.text(item, results)}" for key, item in pairs)
                return f"{{{', '.join(items)}}}"
            case Special.CACHE:
                return self._cache(nest, results)
        made = None if kind is Special.NODE else self._class(nest["class"])
        fields: Mapping[str, Nest] = nest["fields"]
        inner = {name: self.text(item, results) for name, item in fields.items()}
        if made is None:
            is_row = kind in (Special.TUPLE, Special.STRUCT) or all(map(str.isdigit, fields))
            return _row(list(inner.values())) if is_row else _mapping(inner)
        match kind:
            case Special.OBJECT if all(map(_is_word, inner)):
                return f"{made}({', '.join(f'{name}={text}' for name, text in inner.items())})"
            case Special.OBJECT:
                return f"{made}(**{_mapping(inner)})"
            case Special.STRUCT:
                return f"{made}({_row(list(inner.values()))})"
            case _:
                return f"{made}({', '.join(inner.values())})"

    def _plain(self, nest: Nest, results: Mapping[str, str]) -> str:
        if isinstance(nest, tuple | list):
            return _row([self.text(item, results) for item in nest])
        if isinstance(nest, Mapping):
            return _mapping({key: self.text(item, results) for key, item in nest.items()})
        return literal(nest)

    def _cache(self, nest: Nest, results: Mapping[str, str]) -> str:
        made = self._class(nest["class"])
        layers = [_row([self.text(item, results) for item in layer]) for layer in nest["layers"]]
        return _row(layers) if made is None else f"{made}([{', '.join(layers)}])"

    def _class(self, path: str) -> str | None:
        """Returns the name of a class in the source; None where the source shall not need it."""
        module, _, name = path.partition(":")
        if self.is_file and module.partition(".")[0] not in ("torch", "collections"):
            return None
        if path not in self._classes:
            if module.partition(".")[0] == "torch" and "." not in name:
                self._classes[path] = f"{module}.{name}"
            elif _is_found(module, name):
                self.library.imports.setdefault((module, name))
                self._classes[path] = name
            else:
                function = self.library.add(calling.class_named)
                self._classes[path] = f"{function}({quoted(module)}, {quoted(name)})"
        return self._classes[path]


def _is_found(module: str, name: str) -> bool:
    """Returns whether a class can be imported by its name."""
    if "." in name or module == "__main__":
        return False
    return hasattr(importlib.import_module(module), name)


def _is_word(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _row(items: list[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _mapping(items: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{quoted(key)}: {text}' for key, text in items.items())}}}"


def named_outputs(nest: Nest, results: Any) -> dict[str, Any]:
    """Returns what `forward` returned by name.

    Args:
        nest: What it returns, with names of outputs as leaves.
        results: The same nest of tensors.
    """
    if isinstance(nest, str):
        return {nest: results}
    if next(leaves(nest), None) is None:
        return {}
    parts: list[tuple[Nest, Any]]
    match special(nest):
        case Special.SIZE:
            return {nest["name"]: results}
        case Special.LIST:
            parts = list(zip(nest["items"], results, strict=True))
        case Special.DICT:
            pairs = zip(nest["keys"], nest["items"], strict=True)
            parts = [(item, results[key]) for key, item in pairs]
        case Special.CACHE:
            is_plain = isinstance(results, tuple)
            layers = results if is_plain else [(x.keys, x.values) for x in results.layers]
            parts = [
                pair
                for layer, found in zip(nest["layers"], layers, strict=True)
                for pair in zip(layer, found, strict=True)
            ]
        case Special.STRUCT:
            parts = list(zip(nest["fields"].values(), results, strict=True))
        case Special.OBJECT | Special.TUPLE | Special.NODE:
            fields = nest["fields"]
            parts = [(x, _field(results, i, name)) for i, (name, x) in enumerate(fields.items())]
        case _:
            if isinstance(nest, Mapping):
                parts = [(item, results[key]) for key, item in nest.items()]
            else:
                parts = list(zip(nest, results, strict=True))
    return {key: value for part in parts for key, value in named_outputs(*part).items()}


def _field(results: Any, position: int, name: str) -> Any:
    if isinstance(results, Mapping):
        return results.get(name)
    return getattr(results, name) if hasattr(results, name) else results[position]
