"""What the match check costs on the core set, and how many rewrites it covers.

Both pipelines run on copies of one loaded module; the ratio is the sum of times over all models.
"""

from collections.abc import Iterator

import regraft
from benchmarks import models
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, shown
from regraft.ir.module import Module
from regraft.passes.manager import PassRecord
from regraft.pipelines import DEFAULT_PASSES

ROUNDS = 3


def _run(module: Module, check: str) -> tuple[float, list[PassRecord]]:
    """Returns the seconds of all passes, the least of several runs, and the last records."""
    best = float("inf")
    records: list[PassRecord] = []
    for _ in range(ROUNDS):
        records = regraft.apply(module.clone(), DEFAULT_PASSES, check=check)
        best = min(best, sum(record.seconds for record in records))
    return best, records


def measure(settings: Settings) -> Iterator[Row]:
    """Yields one row per model, then the totals."""
    total = {"match": 0.0, "off": 0.0}
    checked, rewrites = 0.0, 0.0
    for model in models.CORE:
        module = regraft.load(models.find(model))
        plain_s, _ = _run(module, "off")
        match_s, records = _run(module, "match")
        total["off"] += plain_s
        total["match"] += match_s
        counts = {
            key: sum(record.stats.get(f"match-{key}", 0) for record in records)
            for key in ("checked", "evaluated", "unchecked")
        }
        checked += counts["checked"]
        rewrites += counts["checked"] + counts["unchecked"]
        note = f"{counts['checked']:.0f} checked, {counts['evaluated']:.0f} evaluated"
        yield shown(f"{model.name}: passes, every rewrite checked", match_s, "s", note)
    yield shown("core set: passes without checks", total["off"], "s")
    # the module check of a conversion runs the source and the result several times: seconds
    yield at_most("core set: passes, every rewrite checked", total["match"], 5.0, "s")
    share = checked / rewrites if rewrites else 0.0
    yield at_least("core set: rewrites that could be checked", 100 * share, 90.0, "%")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("checks", "cost and cover of the match check on the core set", measure),
)
