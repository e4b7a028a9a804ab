"""`tune`: measures the cost table of this machine."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.legalize import SITES, CostTable, OrtLegalizer
from regraft.backends.onnx.legalize.cases import Case, cases
from regraft.backends.onnx.legalize.costs import Entry
from regraft.backends.onnx.legalize.site import Limits
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import UnsupportedError
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context
from regraft.report import versions
from regraft.timing import MIN_TURN_S, interleaved, median, ratio

_CASE_S = 1.2
_QUICK_CASE_S = 0.5
_MIN_ROUNDS, _MAX_ROUNDS = 7, 41
_MAX_OPSET = 26

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Tuning:
    """A measured table and what could not be measured.

    Args:
        table: The table.
        failures: Forms that the runtime refused, with its reason.
        seconds: How long it took.
    """

    table: CostTable
    failures: tuple[str, ...]
    seconds: float


def tune(
    target: str = "ort-cpu",
    *,
    quick: bool = False,
    threads: int = 1,
    sites: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Tuning:
    """Measures every form of every case, interleaved, and returns the table.

    Args:
        target: The profile.
        quick: Measure the short set.
        threads: Threads within an operator.
        sites: Measure these alone; default: all.
        progress: Called with (index, total, case) before each case.

    Raises:
        UnsupportedError: When the target has nothing to measure here.
    """
    if target != "ort-cpu":
        raise UnsupportedError(
            f"target `{target}` has no cost table", hint="`ort-cpu` has one"
        )
    start = time.perf_counter()
    chosen = [
        case
        for case in cases()
        if (case.quick or not quick) and (not sites or case.site in sites)
    ]
    entries, failures = [], []
    for i, case in enumerate(chosen):
        if progress is not None:
            progress(i, len(chosen), str(case))
        entry = measure_case(case, threads, _QUICK_CASE_S if quick else _CASE_S, failures)
        entries.append(entry)
    table = CostTable(target, machine(threads), tuple(entries), "measured")
    return Tuning(table, tuple(dict.fromkeys(failures)), time.perf_counter() - start)


def measure_case(case: Case, threads: int, budget_s: float, failures: list[str]) -> Entry:
    """Measures the forms of one case; refused forms are left out and named in `failures`."""
    inputs = case.inputs()
    runners: dict[str, OrtRunner] = {}
    for form in possible_forms(case):
        try:
            runner = runner_of(case, form, threads)
            runner(inputs)
        except UnsupportedError as error:
            failures.append(f"{case.site} as {form}: {error.message[:200]}")
            continue
        runners[form] = runner
    sessions = [runner.session for runner in runners.values()]
    calls = [lambda s=s: s.run(None, inputs) for s in sessions]
    begin = time.perf_counter()
    for call in calls:
        call()
    once_s = max(time.perf_counter() - begin, len(calls) * MIN_TURN_S)
    rounds = max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(budget_s / once_s)))
    # on one thread the session works on this one: what other processes take is left out
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds = interleaved(calls, rounds, min_turn_s=MIN_TURN_S, clock=clock)
    base_ns = median(seconds[0]) * 1e9
    ns = {
        form: base_ns * ratio(times, seconds[0]).median
        for form, times in zip(runners, seconds, strict=True)
    }
    return Entry(case.site, case.kind, case.sizes, ns)


def possible_forms(case: Case) -> list[str]:
    """Returns the forms of the case's site, the standard one first."""
    site = next(site for site in SITES if site.name == case.site)
    module = case.build()
    limits = Limits(_MAX_OPSET, {})
    for node in module.graph:
        if node.op in site.roots and site.features(node, limits) is not None:
            return list(site.forms(node, limits))
    raise AssertionError(f"case `{case}` holds no site")


def runner_of(case: Case, form: str, threads: int) -> OrtRunner:
    """Returns a session of the case with every site in one form."""
    module = case.build()
    empty = CostTable("ort-cpu", {}, ())
    legalizer = OrtLegalizer(empty, SITES, {case.site: form})
    ctx = Context(legalizers={"ort-cpu": legalizer})
    Legalize("ort-cpu").run(module, ctx)
    return OrtRunner(to_proto(module, profile="ort-cpu"), num_threads=threads)


def machine(threads: int) -> Mapping[str, Any]:
    """Returns CPU, versions and threads that a table is good for."""
    found = versions()
    return {
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": found["onnxruntime"],
        "regraft": found["regraft"],
        "threads": threads,
    }


def cpu_name() -> str:
    """Returns the model name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def user_table(target: str) -> Path:
    """Returns where `tune` writes by default and `legalize` looks first.

    `XDG_CACHE_HOME` (else `~/.cache`) on Linux, the folder for caches of the platform elsewhere.
    """
    if platform.system() == "Windows":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform.system() == "Darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "regraft" / f"costs-{target}.json"
