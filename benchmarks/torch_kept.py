"""What became of every model of a coverage, in a committed file: one line per model.

A coverage of hundreds of models takes an hour, so its table is committed, and every line of it says
at which commit it was measured. A run takes a line as it is when the model, its inputs and the
versions of the packages are those of the line and the model passed; what is missing, what failed
under other code, and a few others by turns are measured again. `--again` measures every line that
was measured under other code; one that was stopped goes on where it was. `--kept` shows the file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT, Settings
from benchmarks.torch_worker import Measure, measured

CODE = (
    "ir", "passes", "frontends/torch", "backends/torch", "backends/onnx",
    "benchmarks/torch_compared.py",
)  # fmt: skip
"""Folders and files that what becomes of a model depends on."""

TURNS = 2
"""Models that passed under other code and are measured again in every run."""


_UNKNOWN: Mapping[str, Any] = {
    "ok": False, "stage": "not measured", "reason": "nothing is kept of it", "refused": None,
    "overloads": {},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kept:
    """One line of the file.

    Attributes:
        name: The model.
        asked: Digest of the model, its inputs, and the versions of the packages.
        code: Digest of the code that was measured.
        commit: Commit of that code, with `+` where files differed from it.
        report: What `compared` says, and more.
    """

    name: str
    asked: str
    code: str
    commit: str
    report: Mapping[str, Any]


def kept_path(coverage: str) -> Path:
    """Returns the file of a coverage."""
    return RESULTS / f"torch_capture-{coverage}.jsonl"


def read(path: Path) -> dict[str, Kept]:
    """Returns the lines of a file by model."""
    if not path.exists():
        return {}
    lines = (Kept(**json.loads(line)) for line in path.read_text().splitlines())
    return {kept.name: kept for kept in lines}


def write(path: Path, lines: Mapping[str, Kept]) -> None:
    """Writes a file, one model a line by name; a stopped run leaves it whole."""
    partial = path.with_suffix(".partial")
    text = (json.dumps(_fields(lines[name]), ensure_ascii=False) + "\n" for name in sorted(lines))
    partial.write_text("".join(text))
    os.replace(partial, path)


def _fields(line: Kept) -> dict[str, Any]:
    return {field.name: getattr(line, field.name) for field in fields(line)}


def asked(model: str, packages: Sequence[str]) -> str:
    """Returns the digest of a model, described by a text, and of the versions of packages."""
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return _short(repr((model, versions)).encode())


def code(places: Sequence[str] = CODE) -> str:
    """Returns the digest of code: of folders, and of files by name or glob."""
    seen = hashlib.sha256()
    for place in places:
        path = ROOT / place
        for file in sorted(path.rglob("*.py") if path.is_dir() else ROOT.glob(place)):
            seen.update(file.read_bytes())
    return seen.hexdigest()[:12]


def commit(places: Sequence[str] = CODE) -> str:
    """Returns the commit of the code, with a `+` where files of it were changed since."""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short=9", "HEAD")
    return (head or "no commit") + (
        "+" if git("status", "--porcelain", "--", *(f":(glob){place}" for place in places)) else ""
    )


def due(
    questions: Mapping[str, str], lines: Mapping[str, Kept], now: str, *, again: bool
) -> list[str]:
    """Returns the models that have to be measured.

    Args:
        questions: Digest of what is asked, by model.
        lines: What is kept.
        now: Digest of the code.
        again: Whether all models are wanted that other code was measured with.
    """
    found: list[str] = []
    old: list[str] = []
    for name, question in questions.items():
        line = lines.get(name)
        # under load a model may have run out of time
        if line is None or line.asked != question or line.report["stage"] == "limit":
            found.append(name)
        elif line.code != now:
            (found if again or not line.report["ok"] else old).append(name)
    by_turns = sorted(old, key=lambda name: _short(f"{now} {name}".encode()))[:TURNS]
    return found + by_turns


def covered(
    path: Path,
    questions: Mapping[str, str],
    measure: Measure,
    shown: Callable[[str, Mapping[str, Any]], str],
    *,
    limit_s: float,
    settings: Settings,
    places: Sequence[str] = CODE,
) -> tuple[dict[str, Kept], int]:
    """Returns the line of every model, and how many were measured now.

    Args:
        path: The file of the coverage.
        questions: Digest of what is asked, by model.
        measure: Function of a module that measures one model.
        shown: Returns the line that is told as soon as a model is measured.
        limit_s: Seconds of one model.
        settings: Say whether all models are wanted that other code was measured with, or none.
        places: Folders and files of code that what becomes of a model depends on.
    """
    now, at = code(places), commit(places)
    lines = read(path)
    missing = [] if settings.kept else due(questions, lines, now, again=settings.again)
    for name, answer in measured(missing, measure, limit_s=limit_s):
        report = answer if isinstance(answer, dict) else {
            "ok": False, "stage": "limit", "reason": answer, "refused": None, "overloads": {},
        }  # fmt: skip
        line = Kept(name, questions[name], now, at, report)
        lines = {**read(path), name: line}  # other runs write to it too
        write(path, lines)
        print(shown(name, report), file=sys.stderr, flush=True)
    return {
        name: lines.get(name, Kept(name, question, "", "no commit", _UNKNOWN))
        for name, question in questions.items()
    }, len(missing)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
