"""Copies functions of `backends/torch/library` into generated source, with what they need."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from typing import Any

_LIBRARY = "regraft.backends.torch.library"
_MODEL = "Model"
_ALWAYS = frozenset({"torch", "__future__", "torch.nn.functional as F"})
"""Modules whose imports every generated file has."""


class LibrarySource:
    """The functions and classes copied so far, in the order in which they can be defined."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.imports: dict[tuple[str, str], None] = {}  # module (or ""), name
        self._modules: dict[str, ParsedModule] = {}
        self._homes: dict[str, str] = {}

    def add(self, item: Callable[..., Any]) -> str:
        """Returns the name of a function or class whose source is copied, once.

        Raises:
            AssertionError: When it is nested, or its name is that of another module's function.
        """
        self._copy(self._parsed(item.__module__), item.__name__)
        return item.__name__

    def _parsed(self, module: str) -> ParsedModule:
        found = self._modules.get(module)
        if found is None:
            found = self._modules[module] = ParsedModule(module)
        return found

    def _copy(self, parsed: ParsedModule, name: str) -> None:
        home = self._homes.setdefault(name, parsed.name)
        if home != parsed.name:
            raise AssertionError(f"`{name}` is defined in {home} and in {parsed.name}")
        if name in self.sources:
            return
        definition = parsed.definitions[name]
        self.sources[name] = ""  # holds its place while what it calls is copied
        for used in names_in(definition):
            if used == _MODEL:
                continue  # the generated class
            if used in parsed.imports:
                module, alias = parsed.imports[used]
                if module.startswith(_LIBRARY):
                    self._copy(self._parsed(module), alias.name)
                else:
                    self.imports.setdefault((module, _spelled(alias)))
            elif used in parsed.definitions and used != name:
                self._copy(parsed, used)
        del self.sources[name]  # what it calls stands before it
        self.sources[name] = parsed.source_of(definition)

    def import_lines(self, *others: LibrarySource) -> list[str]:
        """Returns the import statements besides those that every generated file has, sorted."""
        names: dict[str, set[str]] = {}
        for source in (self, *others):
            for module, name in source.imports:
                if module.partition(".")[0] not in _ALWAYS and name not in _ALWAYS:
                    names.setdefault(module, set()).add(name)
        plain = [f"import {name}" for name in sorted(names.pop("", ()))]
        return plain + [f"from {m} import {', '.join(sorted(names[m]))}" for m in sorted(names)]


def _spelled(alias: ast.alias) -> str:
    return alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"


class ParsedModule:
    """The top level of one imported module of Python.

    Args:
        name: Its full name.

    Attributes:
        definitions: Functions, classes and assignments by name.
        imports: Module and alias by the name that is imported.
        statements: Calls of methods of what is defined (`name.method(...)`), with that name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        module = sys.modules[name]
        self.docstring = module.__doc__ or ""
        self._lines = inspect.getsource(module).splitlines()
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, ast.alias]] = {}
        self.statements: list[tuple[str, ast.stmt]] = []
        for item in ast.parse("\n".join(self._lines)).body:
            match item:
                case ast.FunctionDef() | ast.ClassDef():
                    self.definitions[item.name] = item
                case ast.Import():
                    for alias in item.names:
                        self.imports[alias.asname or alias.name] = ("", alias)
                case ast.ImportFrom():
                    for alias in item.names:
                        self.imports[alias.asname or alias.name] = (item.module or "", alias)
                case (
                    ast.Assign(targets=[ast.Name(id=target)])
                    | ast.AnnAssign(target=ast.Name(id=target))
                ):
                    self.definitions[target] = item
                case ast.Expr(ast.Call(func=ast.Attribute(value=ast.Name(id=subject)))):
                    self.statements.append((subject, item))

    def source_of(self, item: ast.stmt) -> str:
        """Returns the text of a statement, decorators included."""
        first = item.lineno
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            first = min([first, *(each.lineno for each in item.decorator_list)])
        return "\n".join(self._lines[first - 1 : item.end_lineno])


def names_in(item: ast.AST) -> list[str]:
    """Returns the names that a piece of source mentions, in order."""
    names = [each.id for each in ast.walk(item) if isinstance(each, ast.Name)]
    return list(dict.fromkeys(names))
