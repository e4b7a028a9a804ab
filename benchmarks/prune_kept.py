"""What other tools made of every model of the coverage of pruning, in a committed file.

One line per tool and model, with what it answers (versions and recipe): a line that answers
something else is measured again, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.torch_worker import Worker

PATH = RESULTS / "prune_coverage-rivals.jsonl"
WHOLE_LIMIT_S = 400.0
"""Seconds of a model with everything, by the clock: a process that still runs then is ended."""

LANES = 2

Key = tuple[str, str]  # tool, model
Measure = Callable[[str], dict[str, Any]]


def read() -> dict[Key, dict[str, Any]]:
    """Returns the lines of the file by tool and model."""
    if not PATH.exists():
        return {}
    lines = map(json.loads, PATH.read_text().splitlines())
    return {(line["tool"], line["row"]["name"]): line for line in lines}


def _write(lines: dict[Key, dict[str, Any]]) -> None:
    partial = PATH.with_suffix(".partial")
    partial.write_text("".join(json.dumps(lines[key]) + "\n" for key in sorted(lines)))
    os.replace(partial, PATH)


def rows(
    tool: str,
    measure: Measure,
    names: Sequence[str],
    question: str,
    limit_s: float,
    *,
    end: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Measures the models whose line is missing or answers something else; yields their rows.

    Args:
        tool: Name of the tool.
        measure: Function of a module that measures one model.
        names: The models.
        question: What the lines answer.
        limit_s: Seconds of one model.
        end: `time.monotonic()` after which no further model is begun; None for no end.
    """
    known = read()
    left: SimpleQueue[str] = SimpleQueue()
    for name in names:
        if known.get((tool, name), {}).get("of") != question:
            left.put(name)
    for name, answer in _answers(left, measure, limit_s, end):
        row = answer if isinstance(answer, dict) else {
            "name": name, "stage": "limit", "reason": answer,
        }  # fmt: skip
        lines = read()  # other tools may have been measured meanwhile
        lines[tool, name] = {"tool": tool, "of": question, "row": row}
        _write(lines)
        yield row


def _answers(
    left: SimpleQueue[str], measure: Measure, limit_s: float, end: float | None
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Iterates over answers as they come, of processes that stay for one model after another."""
    done: SimpleQueue[tuple[str, dict[str, Any] | str] | None] = SimpleQueue()

    def lane() -> None:
        worker = Worker(measure)
        try:
            while end is None or time.monotonic() < end:
                name = left.get_nowait()
                done.put((name, worker.ask(name, limit_s)))
        except Empty:
            return
        finally:
            worker.stop()
            done.put(None)

    with ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(lane) for _ in range(LANES)]
        running = len(lanes)
        while running:
            found = done.get()
            if found is None:
                running -= 1
            else:
                yield found
        for each in lanes:
            each.result()
