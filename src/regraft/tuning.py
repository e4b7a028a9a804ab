"""`tune`: measures the cost table of this machine."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.legalize import MEASURED, SITES, CostTable, OrtLegalizer
from regraft.backends.onnx.legalize.cases import Case, cases
from regraft.backends.onnx.legalize.costs import Entry
from regraft.backends.onnx.legalize.site import Limits
from regraft.backends.onnx.runtime import OrtRunner
from regraft.emission import BUILT, TRITON
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.passes.legalize import Legalize
from regraft.passes.pipeline import suggest
from regraft.passes.protocol import Context
from regraft.report import versions
from regraft.timing import MIN_TURN_S, interleaved, median, ratio

_CASE_S = 1.5
_QUICK_CASE_S = 0.5
_MIN_ROUNDS, _MAX_ROUNDS = 3, 41
_LONG_CASE_S = 0.1
_SESSIONS = 3
"""Sessions of each form: two of one graph differ by some percent, by where their weights lie.

It matters less where the forms together take longer than `_LONG_CASE_S`."""

_MAX_OPSET = 26

TUNED = (*MEASURED, TRITON)
"""Targets of `tune`; Triton's table is one of launch configurations (`kernel_tuning`)."""

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
        UnsupportedError: For a target without a cost table.
        UsageError: For an unknown target or site.
    """
    check_sites(target, sites)
    start = time.perf_counter()
    chosen = [
        case for case in cases() if (case.quick or not quick) and (not sites or case.site in sites)
    ]
    entries: list[Entry] = []
    failures: list[str] = []
    for i, case in enumerate(chosen):
        if progress is not None:
            progress(i, len(chosen), str(case))
        entry = measure_case(case, threads, _QUICK_CASE_S if quick else _CASE_S, failures)
        entries.append(entry)
    table = CostTable(target, machine(threads), tuple(entries), "measured")
    return Tuning(table, tuple(dict.fromkeys(failures)), time.perf_counter() - start)


def check_sites(target: str, sites: tuple[str, ...]) -> None:
    """Checks what is to be measured before any work begins.

    Raises:
        UnsupportedError: For a target without a cost table.
        UsageError: For an unknown target or site.
    """
    if target not in BUILT:
        raise UsageError(f"unknown target `{target}`", hint=suggest(target, TUNED))
    if target not in MEASURED:
        raise UnsupportedError(
            f"target `{target}` has no cost table", hint=f"targets: {', '.join(TUNED)}"
        )
    known = [site.name for site in SITES]
    for name in sites:
        if name not in known:
            raise UsageError(f"unknown site `{name}`", hint=suggest(name, known))


def summary(table: CostTable) -> list[tuple[str, str, int, float, float]]:
    """Returns (site, form, cases it wins, least and largest time by the standard form)."""
    ratios: dict[tuple[str, str], list[float]] = {}
    wins: dict[tuple[str, str], int] = {}
    for entry in table.entries:
        standard = next(iter(entry.ns.values()))
        fastest = min(entry.ns, key=entry.ns.__getitem__)
        for form, ns in entry.ns.items():
            ratios.setdefault((entry.site, form), []).append(ns / standard)
            wins[entry.site, form] = wins.get((entry.site, form), 0) + (form == fastest)
    return [
        (site, form, wins[site, form], min(found), max(found))
        for (site, form), found in ratios.items()
    ]


def measure_case(case: Case, threads: int, budget_s: float, failures: list[str]) -> Entry:
    """Measures the forms of one case; refused forms are left out and named in `failures`."""
    inputs, forms = case.inputs(), possible_forms(case)
    base_ns: list[float] = []
    ratios: dict[str, list[float]] = {}
    for _ in range(_SESSIONS):
        runners: dict[str, OrtRunner] = {}
        for form in forms:
            try:
                runners[form] = runner_of(case, form, threads)
                runners[form](inputs)
            except UnsupportedError as error:
                failures.append(f"{case.site} as {form}: {error.message[:200]}")
                runners.pop(form, None)
        seconds = _measure(runners, inputs, threads, budget_s / _SESSIONS)
        base_ns.append(median(seconds[forms[0]]) * 1e9)
        for form, times in seconds.items():
            ratios.setdefault(form, []).append(ratio(times, seconds[forms[0]]).median)
        if base_ns[-1] * 1e-9 * len(seconds) > _LONG_CASE_S:
            break
    ns = {form: median(base_ns) * median(found) for form, found in ratios.items()}
    return Entry(case.site, case.kind, case.sizes, ns)


def _measure(
    runners: Mapping[str, OrtRunner], inputs: Mapping[str, Any], threads: int, budget_s: float
) -> dict[str, list[float]]:
    """Returns the seconds per round by form, interleaved."""
    calls = [_call(runner, inputs) for runner in runners.values()]
    begin = time.perf_counter()
    for call in calls:
        call()
    once_s = max(time.perf_counter() - begin, len(calls) * MIN_TURN_S)
    rounds = max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(budget_s / once_s)))
    # on one thread the session works on this one: what other processes take is left out
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds = interleaved(calls, rounds, min_turn_s=MIN_TURN_S, clock=clock)
    return dict(zip(runners, seconds, strict=True))


def _call(runner: OrtRunner, inputs: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: runner.session.run(None, inputs)


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
