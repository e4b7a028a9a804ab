"""Families of `transformers`, tiny and random: captured, canonicalized, compared with eager mode.

Every model goes to ONNX Runtime and to the generated PyTorch module, and is evaluated at the sizes
of the example and two others. `python -m benchmarks.torch_families NAME …` measures some of them
again and prints a line each. Results are kept in `.cache/torch-families` until the code, the tables
or a version changes, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Measurement, Row, Settings, at_least, held, shown
from benchmarks.torch_worker import Measure, measured

LIMIT_S = 240.0
MIN_FAMILIES = 60
CACHE = ROOT / ".cache" / "torch-families"
CODE = ("ir", "passes", "frontends/torch", "backends/torch", "backends/onnx", "src/regraft")
TABLES = ("benchmarks/fixtures/capture_*.py", "benchmarks/torch_compared.py")


def measure_family(name: str) -> dict[str, Any]:
    """Returns what `compared` says about one family; runs in a process of its own."""
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()  # where torchvision is installed without them, no model can be imported
    import transformers

    from benchmarks.fixtures.capture_models import MODELS
    from benchmarks.torch_compared import compared, first_line, quiet

    quiet()
    transformers.logging.set_verbosity_error()
    model = next(model for model in MODELS if model.name == name)
    about = {"kind": model.kind, "inputs": sorted(model.inputs), "sizes": len(model.sizes)}
    try:
        net = model.build()
    except Exception as error:  # a configuration that the library refuses is a line of the table
        return {**about, "ok": False, "stage": "build", "reason": first_line(error)}
    kwargs = {**model.sample({}, 0), **model.fixed}
    samples = [(model.sample(sizes, seed), sizes) for seed, sizes in enumerate(model.sizes)]
    return {**about, **compared(net, kwargs, model.dynamic, samples)}


def names() -> list[str]:
    """Returns the names of all families, without importing PyTorch here."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        found: list[str] = pool.apply(_names)
    return found


def _names() -> list[str]:
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    from benchmarks.fixtures.capture_models import MODELS

    return [model.name for model in MODELS]


def digest(patterns: Sequence[str]) -> str:
    """Returns a hash of the code and the tables that a result depends on, and of the versions."""
    seen = hashlib.sha256()
    for package in ("torch", "transformers", "onnxruntime"):
        seen.update(importlib.metadata.version(package).encode())
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    files += [path for pattern in patterns for path in ROOT.glob(pattern)]
    for path in sorted(set(files)):
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]


def resumed(
    wanted: Sequence[str], measure: Measure, cache: Path, key: str, limit_s: float = LIMIT_S
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterates over models, those that are in the cache first; writes what it measures.

    Args:
        wanted: Names of models.
        measure: Function of a module that measures one.
        cache: Folder with a file per model.
        key: Digest of what results depend on; files with another one are measured again.
        limit_s: Seconds of one model.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = []
    for name in wanted:
        path = cache / f"{name}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("key") == key:
            yield name, kept["report"]
            continue
        missing.append(name)
    for name, answer in measured(missing, measure, limit_s=limit_s):
        report = answer if isinstance(answer, dict) else {
            "ok": False, "stage": "limit", "reason": answer, "refused": None,
        }  # fmt: skip
        (cache / f"{name}.json").write_text(json.dumps({"key": key, "report": report}, indent=1))
        print(line(name, report), file=sys.stderr, flush=True)
        yield name, report


def line(name: str, report: dict[str, Any]) -> str:
    """Returns one line about a model."""
    if report["ok"]:
        return f"{name}: {note(report)}"
    return f"{name}: FAILED at {report['stage']}: {report['reason']}"


def note(report: dict[str, Any]) -> str:
    """Returns what is shown beside a model that passed."""
    calls = sum(report["overloads"].values())
    text = (
        f"{report.get('kind', '')}: {calls} calls of {len(report['overloads'])} overloads, "
        f"{report['nodes']} nodes; largest difference {report['onnx']:.1e} in ONNX Runtime, "
        f"{report['torch']:.1e} in the generated module; {report['sizes']} bindings"
    )
    return text + (f"; torch.export alone: {report['refused']}" if report["refused"] else "")


def rows_of(label: str, reports: dict[str, dict[str, Any]], least: int) -> Iterable[Row]:
    """Returns the row of every model, and what they add up to.

    A model that `torch.export` alone refuses counts as one that has to pass only when it is a
    mixture of experts; the other ones are listed with the export's reason.
    """
    met: Counter[str] = Counter()
    needed = passed = 0
    for name, report in sorted(reports.items()):
        met.update(report.get("overloads", {}))
        counts = report.get("refused") is None or report.get("kind") == "experts"
        text = note(report) if report["ok"] else f"{report['stage']}: {report['reason']}"
        if not report["ok"] and report.get("refused"):
            text += f"; torch.export alone: {report['refused']}"
        needed += counts
        passed += report["ok"]
        if counts or report["ok"]:
            yield held(f"{label}: {name}", report["ok"], text)
        else:
            yield shown(f"{label}: {name} (torch.export refuses)", None, "", text)
    yield at_least(f"{label}: families", len(reports), least, "families")
    failed = sum(
        not r["ok"] and (r.get("refused") is None or r.get("kind") == "experts")
        for r in reports.values()
    )
    yield at_least(
        f"{label}: pass, of what torch.export exports and mixtures of experts",
        100 * (1 - failed / max(needed, 1)), 100, "%",
        f"{passed} pass, {failed} fail, {len(reports) - needed} are refused by torch.export",
    )  # fmt: skip
    listed = ", ".join(f"{target} {count}" for target, count in met.most_common())
    yield shown(f"{label}: overloads met", len(met), "overloads", listed)


def families(settings: Settings) -> Iterable[Row]:
    """Every family of `transformers` in the tables."""
    reports = dict(resumed(names(), measure_family, CACHE, digest(TABLES)))
    yield from rows_of("transformers", reports, MIN_FAMILIES)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "transformers", "families of transformers: captured, in ONNX Runtime, generated", families
    ),
)

if __name__ == "__main__":
    for each, answer in measured(sys.argv[1:] or names(), measure_family, limit_s=LIMIT_S):
        found = answer if isinstance(answer, dict) else {"ok": False, "stage": "", "reason": answer}
        print(line(each, found), flush=True)
