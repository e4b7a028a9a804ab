"""Runs a command line in this process and compares what it prints with a recorded snapshot."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from regraft.cli import main

SNAPSHOTS = Path(__file__).parent / "snapshots"

_BOX = re.compile("[━─┏┡└│┃╇┳]")
_REPLACED = (
    (re.compile(r'("(?:max_abs|max_rel|cosine|allowed)": )[^,\n]+'), r"\1N"),
    (
        re.compile(
            r'("(?:seconds|load|samples|passes|emit|check|page|bench)": )'
            r"(\d+\.\d+(e-\d+)?|\d+e-\d+)"
        ),
        r"\1S",
    ),
    (re.compile(r'("sha256": )"\w+"'), r'\1"HASH"'),
    (re.compile(r'("(?:python|numpy|onnx|onnxruntime|regraft)": )"[^"]+"'), r'\1"VERSION"'),
    (re.compile(r"regraft \d+\.\d+\.\d+"), "regraft VERSION"),
    (re.compile(r"largest difference \S+ \(allowed [^)]+\)"), "largest difference N (allowed N)"),
    (re.compile(r"largest difference \S+ \(measured"), "largest difference N (measured"),
    (re.compile(r"differs by \S+, allowed [\d.e+-]+"), "differs by N, allowed N"),
    (re.compile(r"cosine [\d.-]+"), "cosine N"),
    (re.compile(r"\b\d+(\.\d+)?e[+-]\d+\b"), "N"),
    (re.compile(r"\b\d+\.\d\d │$", re.MULTILINE), "S │"),
    (re.compile(r'("system": )"[^"]+"'), r'\1"SYSTEM"'),
    (re.compile(r"(cases?) in \d+ s"), r"\1 in S s"),
    (re.compile(r"`[^`\s]*/reproducer-\w+`"), "`REPRODUCER`"),
    (re.compile(r'"[^"\s]*/reproducer-\w+"'), '"REPRODUCER"'),
)


def normalize(text: str) -> str:
    """Replaces what differs between machines and runs: times, versions, rounding errors, widths."""
    lines = []
    for line in text.splitlines():
        if _BOX.search(line):
            line = re.sub(r" {2,}", " ", re.sub(r"([━─])+", r"\1", line))
        lines.append(line.rstrip())
    text = "\n".join(lines)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text


def run(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of `regraft *argv`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        main(argv)
    out, err = capsys.readouterr()
    code = exited.value.code
    assert isinstance(code, int)
    return code, out, err


def transcript(argv: Sequence[str], code: int, out: str, err: str) -> str:
    """Returns what a snapshot file holds."""
    parts = [f"$ regraft {shlex.join(argv)}", f"exit {code}"]
    for name, text in (("stdout", out), ("stderr", err)):
        if text:
            parts += [f"-- {name}", normalize(text).rstrip("\n")]
    return "\n".join(parts) + "\n"


def compare(name: str, text: str, *, update: bool) -> None:
    """Compares with the snapshot `name`, or records it."""
    path = SNAPSHOTS / f"{name}.txt"
    if update:
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no snapshot `{name}`; record it with --update-snapshots"
    assert text == path.read_text(encoding="utf-8")
