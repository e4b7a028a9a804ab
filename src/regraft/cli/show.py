"""Tables on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table


def out_console() -> Console:
    """Returns the console for results; plain and 100 columns wide when piped."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100, highlight=False)


def err_console() -> Console:
    """Returns the console for talk."""
    return Console(file=sys.stderr, highlight=False)


def print_json(data: Any) -> None:
    """Prints one document; NaN and infinities become strings, so that it is valid JSON."""
    click.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(item) for item in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return str(data)
    return data


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Returns a table; columns after the first are right-aligned unless their name ends in `:`."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        left = i == 0 or column.endswith(":")
        made.add_column(column.rstrip(":"), justify="left" if left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def human_bytes(count: int | None) -> str:
    """Returns a size with a unit: `12.3 MB`."""
    if count is None:
        return "-"
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")


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
            click.echo(f"warning: {message}", err=True)
