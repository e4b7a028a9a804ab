"""Options that several verbs share, and the values they parse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Assignments(click.ParamType):
    """`batch=1,seq=128` as a dict of sizes."""

    name = "name=size,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        """Parses the text."""
        if isinstance(value, dict):
            return value
        sizes: dict[str, int] = {}
        for part in filter(None, str(value).split(",")):
            name, equals, number = part.partition("=")
            if not equals or not number.strip().isdigit():
                self.fail(f"`{part}` is not `name=size`", param, ctx)
            sizes[name.strip()] = int(number)
        return sizes


class Memory(click.ParamType):
    """`800MB`, `2GiB` or a number of bytes."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parses the text; both MB and MiB are powers of 1000 and 1024 respectively."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"`{value}` is not a size such as `800MB`", param, ctx)
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.lower()])


def sample_options(function: F) -> F:
    """Adds `--inputs`, `--dims`, `--seed`."""
    for option in (
        click.option("--seed", type=int, default=0, help="Seed of everything random."),
        click.option("--dims", type=Assignments(), default=dict, help="Sizes of generated samples."),
        click.option(
            "--inputs", type=click.Path(path_type=Path), help="Samples: a .npz file or a folder of them."
        ),
    ):
        function = option(function)
    return function


def tolerance_options(function: F) -> F:
    """Adds `--rtol` and `--atol`."""
    for option in (
        click.option("--atol", type=float, help="Absolute tolerance added to the relative one."),
        click.option("--rtol", type=float, help="Relative tolerance of the largest output element."),
    ):
        function = option(function)
    return function


def output_options(function: F) -> F:
    """Adds `--json`, `-q` and `-v`."""
    for option in (
        click.option("-v", "--verbose", count=True, help="Say more on stderr."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    ):
        function = option(function)
    return function


def plugin_options(function: F) -> F:
    """Adds `--passes` and `--recipe`."""
    for option in (
        click.option("--recipe", type=click.Path(path_type=Path), help="A YAML recipe."),
        click.option("--passes", help="A pipeline: `name{option=value},name2`."),
    ):
        function = option(function)
    return function


def load_samples(inputs: Path | None) -> list[dict[str, Any]]:
    """Returns the samples of `--inputs`, none when it is absent."""
    if inputs is None:
        return []
    from regraft.samples import read_samples  # noqa: PLC0415

    return read_samples(inputs)
