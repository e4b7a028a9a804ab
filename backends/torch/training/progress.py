"""Progress of a run on a terminal: steps, loss, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Report(Protocol):
    """Takes the state of a run."""

    def __call__(self, step: int, loss: float) -> None:
        """Shows that `step` steps are done, the last with this loss."""


@contextmanager
def shown_progress(label: str, steps: int, *, enabled: bool) -> Iterator[Report]:
    """Yields what is called after every step; shows nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"), TimeRemainingColumn(),
    )  # fmt: skip
    disable = not (enabled and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(label, total=steps, loss=float("nan"))

        def report(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=loss)

        yield report
