"""Pipeline strings: `canonicalize,fuse,prune{target=flops:0.5,keep=[a,b]}` to passes and back.

Parse, print, parse is the identity. Options are the fields of the pass's dataclass, written in
kebab-case (snake_case is read too).
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from regraft.ir.errors import UsageError
from regraft.passes.protocol import Pass

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_BARE = re.compile(r"[^\s,{}\[\]\"=]+")

Raw = "str | list[Raw]"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One element of a pipeline before it is resolved: a name and raw options."""

    name: str
    options: Mapping[str, Any]


class _Reader:
    """Recursive descent over one pipeline string."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def fail(self, expected: str) -> UsageError:
        got = self.text[self.pos : self.pos + 10] or "the end"
        return UsageError(
            f"pipeline `{self.text}`, character {self.pos + 1}: expected {expected}, got `{got}`",
            hint="write `name{option=value,list=[a,b]},name2`",
        )

    def skip(self) -> None:
        while self.pos < len(self.text) and self.text[self.pos].isspace():
            self.pos += 1

    def take(self, char: str) -> bool:
        self.skip()
        if self.text.startswith(char, self.pos):
            self.pos += 1
            return True
        return False

    def bare(self, what: str) -> str:
        self.skip()
        match = _BARE.match(self.text, self.pos)
        if match is None:
            raise self.fail(what)
        self.pos = match.end()
        return match.group()

    def value(self) -> Any:
        self.skip()
        if self.take("["):
            items: list[Any] = []
            while not self.take("]"):
                items.append(self.value())
                if not self.take(",") and not self.text.startswith("]", self.pos):
                    raise self.fail("`,` or `]`")
            return items
        if self.text.startswith('"', self.pos):
            end = self.pos + 1
            while end < len(self.text) and self.text[end] != '"':
                end += 2 if self.text[end] == "\\" else 1
            if end >= len(self.text):
                raise self.fail("a closing quote")
            raw = self.text[self.pos + 1 : end]
            self.pos = end + 1
            return re.sub(r"\\(.)", r"\1", raw)
        return self.bare("a value")

    def step(self) -> Step:
        name = self.bare("a pass name")
        options: dict[str, Any] = {}
        if self.take("{"):
            while not self.take("}"):
                key = self.bare("an option name")
                if not self.take("="):
                    raise self.fail("`=`")
                if key in options:
                    raise UsageError(f"pass `{name}`: option `{key}` is given twice")
                options[key] = self.value()
                self.skip()
                if not self.take(",") and not self.text.startswith("}", self.pos):
                    raise self.fail("`,` or `}`")
        return Step(name, options)


def parse_steps(text: str) -> list[Step]:
    """Parses a pipeline string without resolving names.

    Raises:
        UsageError: With the character position.
    """
    reader = _Reader(text)
    steps: list[Step] = []
    reader.skip()
    while reader.pos < len(text):
        steps.append(reader.step())
        reader.skip()
        if reader.pos < len(text) and not reader.take(","):
            raise reader.fail("`,`")
        reader.skip()
    return steps


def parse_pipeline(text: str, passes: Iterable[type[Pass]]) -> list[Pass]:
    """Returns the passes of a pipeline string.

    Raises:
        UsageError: For an unknown pass or option, or a value of the wrong type.
    """
    return resolve(parse_steps(text), passes)


def resolve(steps: Sequence[Step], passes: Iterable[type[Pass]]) -> list[Pass]:
    """Returns the pass objects of parsed steps."""
    by_name = {cls.name: cls for cls in passes}
    made: list[Pass] = []
    for step in steps:
        name = step.name.replace("_", "-")
        cls = by_name.get(name)
        if cls is None:
            raise UsageError(f"unknown pass `{step.name}`", hint=suggest(name, by_name))
        made.append(make_pass(cls, step.options))
    return made


def make_pass(cls: type[Pass], options: Mapping[str, Any]) -> Pass:
    """Creates a pass from raw options, converted to the types of its fields.

    Raises:
        UsageError: For an unknown option or a value of the wrong type.
    """
    return make_named(cls, options, f"pass `{cls.name}`")


class Named(Protocol):
    """A frozen dataclass with a name, whose fields are options: a pass, a metric."""

    name: ClassVar[str]


N = TypeVar("N", bound=Named)


def make_named(cls: type[N], options: Mapping[str, Any], where: str) -> N:
    """Creates an object from raw options, converted to the types of its fields.

    Args:
        cls: Its class.
        options: Values as they were written, by name.
        where: What errors call it.

    Raises:
        UsageError: For an unknown option or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, raw in options.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise UsageError(
                f"{where} has no option `{key}`",
                hint=suggest(key, [f.replace("_", "-") for f in fields]),
            )
        values[name] = _convert(raw, hints[name], f"{where}, option `{key}`")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(
            f"{where} needs option `{missing[0].replace('_', '-')}`",
            hint=f"write `{cls.name}{{{missing[0].replace('_', '-')}=…}}`",
        )
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def check_options(cls: type[Named], where: str) -> None:
    """Checks that a pipeline can give every option of a pass.

    Raises:
        UsageError: Naming the first option that has another type.
    """
    if not hasattr(cls, "__dataclass_fields__"):
        raise UsageError(f"{where} is no dataclass", hint="decorate it: @dataclass(frozen=True)")
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if f.init and not _is_written(hints[f.name]):
            raise UsageError(
                f"{where}: option `{f.name}` is a `{hints[f.name]}`, which no pipeline can write",
                hint="use bool, int, float, str, Path, an enum, a Literal, or tuples of them",
            )


def _is_written(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return all(_is_written(arg) for arg in typing.get_args(hint) if arg is not type(None))
    if origin in (tuple, list, Sequence):
        return _is_written(typing.get_args(hint)[0])
    if origin is typing.Literal or hint in (bool, int, float, str, Path, Any):
        return True
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns `did you mean …` or the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known: {', '.join(names)}" if names else "there are none"


def _convert(raw: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(raw, typing.get_args(hint), where)
    if origin is typing.Literal:
        return _choose(raw, {str(arg): arg for arg in typing.get_args(hint)}, where)
    if origin in (tuple, list, Sequence):
        items = raw if isinstance(raw, list | tuple) else [raw]
        return tuple(_convert(item, typing.get_args(hint)[0], where) for item in items)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choose(raw, {str(member.value): member for member in hint}, where)
    if hint is bool:
        return raw if isinstance(raw, bool) else _choose(str(raw).lower(), _BOOLS, where)
    if hint in (int, float):
        try:
            return hint(raw)
        except (TypeError, ValueError):
            kind = "a whole number" if hint is int else "a number"
            raise UsageError(f"{where}: `{raw}` is not {kind}") from None
    if hint is Path:
        return Path(raw)
    if hint is str or hint is Any:
        return raw if isinstance(raw, str) else str(raw)
    raise AssertionError(f"{where}: option type {hint} is not supported by pipelines")


def _convert_union(raw: Any, options: Sequence[Any], where: str) -> Any:
    if type(None) in options and (raw is None or raw == "none"):
        return None
    first: UsageError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(raw, option, where)
        except UsageError as error:
            first = first or error
    raise first or UsageError(f"{where}: `{raw}` is not allowed")


def _choose(raw: Any, known: Mapping[str, Any], where: str) -> Any:
    found = known.get(str(raw))
    if found is None:
        raise UsageError(f"{where}: `{raw}` is not allowed", hint=suggest(str(raw), known))
    return found


def format_pipeline(passes: Sequence[Pass]) -> str:
    """Returns the pipeline string of passes; options equal to their defaults are left out."""
    return ",".join(format_pass(item) for item in passes)


def format_pass(item: Pass) -> str:
    """Returns one pass as pipeline text."""
    options = ",".join(f"{key}={_format(value)}" for key, value in options_of(item).items())
    return f"{item.name}{{{options}}}" if options else item.name


def options_of(item: Pass, *, defaults: bool = False) -> dict[str, Any]:
    """Returns a pass's options in kebab-case; with `defaults`, also those at their default."""
    options: dict[str, Any] = {}
    for f in dataclasses.fields(item):  # type: ignore[arg-type]
        if not f.init:
            continue
        value = getattr(item, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if defaults or value != default:
            options[f.name.replace("_", "-")] = value
    return options


def _format(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(_format(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        value = value.value
    text = repr(value) if isinstance(value, float) else str(value)
    if _BARE.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
