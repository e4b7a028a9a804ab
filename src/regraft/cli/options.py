"""Options that several verbs share, and the values they parse."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from regraft.metrics import Asked
    from regraft.plugins import Extensions

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Assignments(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
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
            if not equals or not number.strip().isdecimal():
                self.fail(f"`{part}` is not `name=size`", param, ctx)
            if name.strip() in sizes:
                self.fail(f"`{name.strip()}` is given twice", param, ctx)
            sizes[name.strip()] = int(number)
        return sizes


class Memory(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """`800MB`, `2GiB` or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parses the text: MB are powers of 1000, MiB powers of 1024."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"`{value}` is not a size such as `800MB`", param, ctx)
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.lower()])


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Returns a decorator that adds options in the order in which help shows them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


sample_options = _all(
    click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="Samples: a .npz file or a folder of them.",
    ),
    click.option("--dims", type=Assignments(), default=dict, help="Sizes of generated samples."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything random."),
)
"""`--inputs`, `--dims`, `--seed`."""

tolerance_options = _all(
    click.option("--rtol", type=float, help="Tolerance relative to the largest output element."),
    click.option("--atol", type=float, help="Absolute tolerance, added to the relative one."),
)
"""`--rtol`, `--atol`."""

quality_options = _all(
    click.option(
        "--metric",
        metavar="NAME",
        help="Measure quality: embedding, kl, perplexity or accuracy, `name{option=value}`.",
    ),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="What --metric measures on: a text, .npz files, a folder of images.",
    ),
    click.option(
        "--max-drop", metavar="X", help="What may be lost of --metric, 0.01 or 1%; else exit 4."
    ),
)
"""`--metric`, `--data`, `--max-drop`."""

memory_option = click.option(
    "--max-memory", type=Memory(), help="Working-memory budget, such as 800MB."
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads within an operator.",
)

source_options = _all(
    click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE.py:NAME|NAME",
        help="Load a plugin, a file's or an installed one (runs it).",
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Let a Hugging Face source run its own code."
    ),
)
"""`--plugin`, `--trust-remote-code`."""

output_options = _all(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    click.option("-q", "--quiet", is_flag=True, help="No warnings and no progress."),
    click.option("-v", "--verbose", count=True, help="Say more."),
)
"""`--json`, `-q`, `-v`."""

pipeline_options = _all(
    click.option("--passes", metavar="PIPELINE", help="`name{option=value},name2`."),
    click.option("--recipe", type=click.Path(path_type=Path), help="A YAML recipe."),
    click.option("--explain", metavar="RULE", help="Say on stderr why a rule did not match."),
)
"""`--passes`, `--recipe`, `--explain`."""


def load_samples(inputs: Path | None) -> list[dict[str, Any]]:
    """Returns the samples of `--inputs`, none when it is absent."""
    if inputs is None:
        return []
    from regraft.samples import read_samples

    return read_samples(inputs)


def load_metric(
    metric: str | None, data: Path | None, max_drop: str | None, tokenizer: Path | None = None
) -> Asked | None:
    """Returns what `--metric`, `--data` and `--max-drop` ask for, None when nothing.

    A metric that names no tokenizer gets that of `--tokenizer`.

    Raises:
        UsageError: When one of them is given without what it needs.
    """
    from regraft.ir.errors import UsageError
    from regraft.metrics import Asked, parse_drop, parse_metric

    if metric is None and (data is not None or max_drop is not None):
        flag = "--data" if data is not None else "--max-drop"
        raise UsageError(
            f"`{flag}` needs `--metric`", hint="--metric embedding, kl, perplexity or accuracy"
        )
    if metric is None:
        return None
    if data is None:
        raise UsageError(
            "`--metric` needs `--data`", hint="a text file, .npz files or a folder of images"
        )
    found = parse_metric(metric)
    if found.tokenizer is None and tokenizer is not None:
        found = replace(found, tokenizer=str(tokenizer))
    return Asked(found, data, None if max_drop is None else parse_drop(max_drop))


def load_extensions(places: tuple[str, ...], trust_remote_code: bool = False) -> Extensions:
    """Returns what regraft offers with what the plugins of `--plugin` add."""
    from regraft.plugin_places import load_plugin
    from regraft.plugins import combine

    extensions = combine([load_plugin(place) for place in places])
    return replace(extensions, trust_remote_code=trust_remote_code)


def show_explanations(rule: str | None, lines: list[str] | tuple[str, ...]) -> None:
    """Prints near misses on stderr when they were asked for."""
    if rule is not None:
        for line in lines or [f"rule `{rule}` has no near miss: it matched, or nothing is like it"]:
            click.echo(line, err=True)
