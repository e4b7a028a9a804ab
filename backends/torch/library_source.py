"""Copies functions of `backends/torch/library` into generated source, with what they need."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_OWN_IMPORTS = {"import torch", "from torch import Tensor, nn", "from __future__ import annotations",
                "import torch.nn.functional as F"}  # fmt: skip


class LibrarySource:
    """The functions and classes copied so far, in the order in which they can be defined."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.imports: dict[str, None] = {}
        self._modules: dict[str, _Parsed] = {}
        self._homes: dict[str, str] = {}

    def add(self, item: Callable[..., Any]) -> str:
        """Returns the name of a function or class whose source is copied, once.

        Raises:
            AssertionError: When it is nested, or its name is that of another module's function.
        """
        module = sys.modules[item.__module__]
        parsed = self._modules.get(module.__name__)
        if parsed is None:
            parsed = self._modules[module.__name__] = _Parsed(module)
        self._copy(parsed, item.__name__)
        return item.__name__

    def _copy(self, parsed: _Parsed, name: str) -> None:
        home = self._homes.setdefault(name, parsed.name)
        if home != parsed.name:
            raise AssertionError(f"`{name}` is defined in {home} and in {parsed.name}")
        if name in self.sources:
            return
        definition = parsed.definitions[name]
        self.sources[name] = ""  # holds its place while what it calls is copied
        for used in _names_in(definition):
            if used in parsed.imports:
                self.imports.setdefault(parsed.imports[used])
            elif used in parsed.definitions and used != name:
                self._copy(parsed, used)
        del self.sources[name]  # what it calls stands before it
        self.sources[name] = parsed.source_of(definition)

    @property
    def import_lines(self) -> list[str]:
        """Import statements besides those that every generated file has."""
        return [line for line in self.imports if line not in _OWN_IMPORTS]


class _Parsed:
    """The top level of one library module."""

    def __init__(self, module: ModuleType) -> None:
        self.name = module.__name__
        self._lines = inspect.getsource(module).splitlines()
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, str] = {}
        for item in ast.parse("\n".join(self._lines)).body:
            match item:
                case ast.FunctionDef() | ast.ClassDef():
                    self.definitions[item.name] = item
                case ast.Import() | ast.ImportFrom():
                    for alias in item.names:
                        self.imports[alias.asname or alias.name] = ast.unparse(item)
                case (
                    ast.Assign(targets=[ast.Name(id=target)])
                    | ast.AnnAssign(target=ast.Name(id=target))
                ):
                    self.definitions[target] = item

    def source_of(self, item: ast.stmt) -> str:
        first = item.lineno
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            first = min([first, *(each.lineno for each in item.decorator_list)])
        return "\n".join(self._lines[first - 1 : item.end_lineno])


def _names_in(item: ast.stmt) -> list[str]:
    names = [each.id for each in ast.walk(item) if isinstance(each, ast.Name)]
    return list(dict.fromkeys(names))
