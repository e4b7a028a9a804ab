"""Tables on stdout, talk on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from regraft.cli.printable import printable

_PIPED_WIDTH = 100


def out_console() -> Console:
    """Returns the console for results; plain and 100 columns wide when piped."""
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    # no markup: `f32[batch]` and paths would lose their brackets
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def err_console() -> Console:
    """Returns the console for talk."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def print_json(data: Any) -> None:
    """Prints one document; NaN and infinities become strings, so that it is valid JSON."""
    click.echo(json.dumps(finite(data), indent=2, allow_nan=False))


def finite(data: Any) -> Any:
    """Returns data that JSON can hold."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(item) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Prints a title line and a table; columns whose name ends in `:` are left-aligned."""
    made = Table(header_style="bold")
    for i, column in enumerate(columns):
        left = i == 0 or column.endswith(":")
        made.add_column(column.rstrip(":"), justify="left" if left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(printable(str(cell)) for cell in row))
    # a title longer than the line is cut by no one: it may be a path
    console.print(printable(title), style="italic", soft_wrap=True)
    console.print(made)


def plural(count: int, noun: str) -> str:
    """Returns `1 sample`, `2 samples`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@contextmanager
def progress(*, enabled: bool) -> Iterator[Callable[[str], None]]:
    """Shows the current stage on a terminal; says nothing elsewhere."""
    console = err_console()
    if not enabled or not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(stage)


def warn(messages: Sequence[str], *, quiet: bool) -> None:
    """Prints warnings on stderr."""
    if not quiet:
        for message in messages:
            click.echo(f"warning: {printable(message)}", err=True)
