"""ONNX's own backend tests, through load, canonicalize and save in two profiles.

A case counts when plain ONNX Runtime passes it; it must pass after us too. The numpy evaluator has
to agree on every case whose operators all have specs. Random operators are compared with nothing:
their expected outputs come from another generator.
"""

from collections import Counter
from collections.abc import Iterator

from benchmarks.measure import Measurement, Row, Settings, held, shown
from tests.conformance.cases import Case
from tests.conformance.run import baseline, run_case
from tests.conformance.suites import SUITES, suite

PROFILES = ("onnx", "ort-cpu")
RANDOM = "test_bernoulli"
MAX_NAMED = 5


def measure(settings: Settings) -> Iterator[Row]:
    """Yields counts per suite and profile, and the names of what fails."""
    for name in SUITES:
        cases = suite(name)
        known = baseline(cases)
        yield shown(f"{name}: cases", len(cases), "cases")
        yield shown(
            f"{name}: plain ONNX Runtime passes", sum(known[c.name] for c in cases), "cases"
        )
        for profile in PROFILES:
            yield from _profile(name, profile, cases, known)


def _profile(name: str, profile: str, cases: list[Case], known: dict[str, bool]) -> Iterator[Row]:
    counts: Counter[str] = Counter()
    broken, disagrees = [], []
    for case in cases:
        # the constants of the real suite give logits of 1e10: their softmax is noise in f32
        oracle = name == "real"
        outcome = run_case(case, known[case.name], profile, "canonicalize", oracle=oracle)
        counts["evaluated by specs"] += outcome.specs
        counts["passed as opaque"] += not outcome.specs and not outcome.emitted.startswith("load:")
        counts["refused"] += outcome.emitted.startswith("load:")
        if outcome.baseline and outcome.emitted:
            broken.append(f"{case.name}: {outcome.emitted}")
        if outcome.specs and outcome.evaluated and not case.name.startswith(RANDOM):
            disagrees.append(f"{case.name}: {outcome.evaluated}")
    for what, count in counts.items():
        yield shown(f"{name}, {profile}: {what}", count, "cases")
    yield held(f"{name}, {profile}: what passed still passes", not broken, _named(broken))
    yield held(f"{name}, {profile}: the evaluator agrees", not disagrees, _named(disagrees))


def _named(failures: list[str]) -> str:
    more = f" and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
    return "; ".join(line[:120] for line in failures[:MAX_NAMED]) + more


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("conformance", "ONNX backend tests through both profiles", measure),
)
