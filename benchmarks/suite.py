"""Runs a list of measurements: table, file of results with the hardware named, exit status."""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.measure import RESULTS, ROOT, Measurement, Row, Settings, by_name

CPU_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
PACKAGES = ("regraft", "numpy", "onnx", "onnxruntime", "ml_dtypes")
OPTIONAL = ("torch", "torchvision", "transformers", "timm")
PEERS = ("onnxsim", "onnxslim", "onnxscript", "onnx-ir", "onnx", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of one measurement, how long it took, and why it stopped if it did."""

    name: str
    rows: tuple[Row, ...]
    seconds: float
    error: str | None

    @property
    def met(self) -> bool:
        """Whether it ran to its end with no bar missed."""
        return self.error is None and all(row.met is not False for row in self.rows)


def hardware() -> dict[str, object]:
    """Returns CPU model, cores, the vector flags that matter, memory, and the system."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:  # not Linux
        text = ""
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text, flags=re.MULTILINE))
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "family": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": os.cpu_count(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_at_start": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(settings: Settings) -> dict[str, dict[str, str]]:
    """Returns the versions of our packages and of the peers."""
    found = {item.name: item.version for item in importlib.metadata.distributions()}
    ours = {name: found[name] for name in (*PACKAGES, *OPTIONAL) if name in found}
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    if shutil.which(settings.peers_python) is None:  # many measurements have no peer
        return {"ours": ours, "peers": {}}
    done = subprocess.run(
        [settings.peers_python, "-c", code, *PEERS], capture_output=True, text=True, check=False
    )
    return {"ours": ours, "peers": json.loads(done.stdout) if done.returncode == 0 else {}}


def measure(measurement: Measurement, settings: Settings) -> Result:
    """Runs one measurement in a process of its own; an exception becomes its error.

    A fresh process, because commands start with the peak of memory of the one that launches them.
    """
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        rows, error = pool.submit(_rows, measurement, settings).result()
    return Result(measurement.name, tuple(rows), time.perf_counter() - start, error)


def _rows(measurement: Measurement, settings: Settings) -> tuple[list[Row], str | None]:
    # a shell starts background jobs deaf to Ctrl-C, which some measurements send
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rows: list[Row] = []
    try:
        rows.extend(measurement.run(settings))
    except Exception as raised:
        return rows, f"{type(raised).__name__}: {raised}"
    return rows, None


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def print_table(console: Console, results: Sequence[Result]) -> None:
    """Prints one line per row; a missed bar or an error is written out, not only coloured."""
    table = Table("measurement", "value", "bar", "unit", "met", "note", expand=False)
    verdicts = {True: "yes", False: "[bold red]NO[/]", None: ""}
    for result in results:
        for row in result.rows:
            bar = "" if row.bar is None else f"{row.sense} {_number(row.bar)}"
            table.add_row(
                escape(row.name),
                _number(row.value),
                bar,
                row.unit,
                verdicts[row.met],
                escape(row.note),
            )
        if result.error is not None:
            lines = result.error.strip().splitlines()
            reason = "\n".join(dict.fromkeys((lines[0], lines[-1])))  # all of it is in the file
            table.add_row(result.name, "-", "", "", verdicts[False], escape(reason))
        table.add_section()
    console.print(table)


def write_json(path: Path, results: Sequence[Result], settings: Settings) -> None:
    """Writes hardware, versions and rows; measurements not run this time keep their last rows."""
    kept = json.loads(path.read_text())["measurements"] if path.exists() else {}
    commit = _commit()
    fresh = {
        result.name: {
            "met": result.met,
            "error": result.error,
            "seconds": round(result.seconds, 1),
            "commit": commit,
            "rows": [
                {
                    "name": row.name,
                    "value": row.value,
                    "unit": row.unit,
                    "bar": row.bar,
                    "sense": row.sense,
                    "met": row.met,
                    "note": row.note,
                }
                for row in result.rows
            ],
        }
        for result in results
    }
    document = {
        "hardware": hardware(),
        "versions": versions(settings),
        "measurements": {**kept, **fresh},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _commit() -> str | None:
    """Returns the measured commit, `-dirty` where code differs from it; None without git."""
    commit = _git("describe", "--always", "--abbrev=9")
    if commit is None:
        return None
    changed = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return f"{commit}-dirty" if changed else commit


def _git(*words: str) -> str | None:
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def result_path(name: str) -> Path:
    """Returns the file of results of a list of measurements on this CPU."""
    cpu = hardware()
    words = (
        f"{cpu['cpu']}-{cpu['cores']}c-{'vnni' if 'avx512_vnni' in str(cpu['flags']) else 'novnni'}"
    )
    return RESULTS / f"{name}-{re.sub(r'[^a-z0-9]+', '-', words.lower()).strip('-')}.json"


def _parse(name: str, about: str, measurements: Sequence[Measurement]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="repeatable")
    parser.add_argument("--list", action="store_true", help="list the measurements")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"))
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of one subprocess")
    parser.add_argument("--rounds", type=int, default=7)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--again", action="store_true", help="keep no row of another commit")
    how.add_argument("--kept", action="store_true", help="show coverages as they were measured")
    parser.add_argument("--no-write", action="store_true", help="leave the results file alone")
    options = parser.parse_args()
    known = by_name(measurements)
    for each in options.only or ():
        if each not in known:
            parser.error(f"no measurement `{each}`; there are {', '.join(known)}")
    return options


def run(name: str, about: str, measurements: Sequence[Measurement]) -> int:
    """Runs the measurements that the command line asks for.

    Args:
        name: Name of the module, and of the file of results.
        about: Text of `--help`.
        measurements: All of them.

    Returns:
        The exit status, 1 when a bar is missed.
    """
    options = _parse(name, about, measurements)
    console = Console(width=None if sys.stdout.isatty() else 180)
    if options.list:
        for measurement in measurements:
            console.print(f"{measurement.name:22} {measurement.about}", highlight=False)
        return 0
    settings = Settings(
        sys.executable, options.peers_python, options.timeout, options.rounds,
        again=options.again, kept=options.kept,
    )  # fmt: skip
    settings.work.mkdir(parents=True, exist_ok=True)
    results = []
    for each, measurement in by_name(measurements).items():
        if options.only and each not in options.only:
            continue
        print(f"{each} …", file=sys.stderr, flush=True)
        results.append(measure(measurement, settings))
    print_table(console, results)
    if not options.no_write:
        write_json(result_path(name), results, settings)
    missed = [result.name for result in results if not result.met]
    console.print(f"missed: {', '.join(missed)}" if missed else "every bar is met", style="bold")
    return 1 if missed else 0
