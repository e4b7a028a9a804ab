"""Coverage of timm: every family through capture, ONNX Runtime and generated PyTorch.

Rows of a run that was stopped are kept in `.cache` and are not made again while the code that made
them is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.measure import ROOT, Measurement, Row, Settings, at_least, shown
from benchmarks.torch_timm_names import ARCHITECTURES, NAMES

WANTED = 150
"""Architectures that issue 4 asks for."""

WORKERS = 2
SOURCES = ("ir", "passes", "frontends/torch", "backends/torch", "backends/onnx")


class Worker:
    """A process that answers one name at a time; made again when it dies or takes too long."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def answer(self, name: str) -> dict[str, Any]:
        """Returns the row of an architecture."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
        try:
            line = self._lines.get(timeout=self._settings.timeout_s)
        except queue.Empty:
            self.stop()
            return {"name": name, "stage": "time", "error": f"{self._settings.timeout_s:.0f} s"}
        if not line:  # the end of its output
            status = process.wait()
            self.stop()
            return {"name": name, "stage": "process", "error": f"ended with status {status}"}
        row: dict[str, Any] = json.loads(line)
        return row

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [self._settings.python, "-m", "benchmarks.torch_timm_once"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        Thread(target=_read, args=(process, lines), daemon=True).start()
        self._process, self._lines = process, lines
        return process


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def answers(settings: Settings) -> list[Mapping[str, Any]]:
    """Returns one row per architecture, in the order of the names."""
    folder = settings.work / "timm" / _code_hash()
    folder.mkdir(parents=True, exist_ok=True)
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in NAMES:
        if not _kept(folder, name).exists():
            left.put(name)
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(_work, settings, folder, left) for _ in range(WORKERS)]:
            done.result()
    return [json.loads(_kept(folder, name).read_text()) for name in NAMES]


def _work(settings: Settings, folder: Path, left: queue.SimpleQueue[str]) -> None:
    worker = Worker(settings)
    try:
        while True:
            try:
                name = left.get_nowait()
            except queue.Empty:
                return
            _kept(folder, name).write_text(json.dumps(worker.answer(name)))
    finally:
        worker.stop()


def _kept(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _code_hash() -> str:
    """Returns a hash of the code that the rows depend on."""
    digest = hashlib.sha256()
    files = [ROOT / "benchmarks" / "torch_timm_once.py"]
    for source in SOURCES:
        files += sorted((ROOT / source).rglob("*.py"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the counts against their bars, then a line for every architecture."""
    rows = answers(settings)
    done = [row for row in rows if row["stage"] == "done"]
    refused = [row for row in rows if row.get("exports", "yes") != "yes"]
    families = {family for family, names in ARCHITECTURES.items() for row in done
                if row["name"] in names}  # fmt: skip
    yield at_least("timm architectures with equal outputs", len(done), WANTED, "models")
    yield at_least(
        "timm families with equal outputs", len(families), len(ARCHITECTURES), "families"
    )
    yield at_least(
        "of those that torch.export exports", len(done), len(rows) - len(refused), "models",
        f"torch.export refuses {len(refused)} of {len(rows)}",
    )  # fmt: skip
    for row in rows:
        yield shown(f"timm {row['name']}", row.get("seconds"), "s", _note(row))


def _note(row: Mapping[str, Any]) -> str:
    if row["stage"] == "done":
        return (
            f"{row['side']} px, {row['nodes']} nodes; largest relative difference: ONNX Runtime "
            f"{row['onnxruntime']['max_rel']:.1g}, PyTorch {row['torch']['max_rel']:.1g}"
        )
    exports = row.get("exports", "yes")
    by = "" if exports == "yes" else f"; torch.export itself: {exports}"
    return f"{row['stage']}: {row['error']}{by}"


MEASUREMENTS = (
    Measurement("timm", "architectures of timm: capture, ONNX Runtime, PyTorch", measure),
)
