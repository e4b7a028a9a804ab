"""ONNX's backend suites through load, canonicalize and save: what passed still passes.

A tenth of the node cases and the small suites run by default, all of them with `slow`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import pytest

from tests.conformance.cases import Case
from tests.conformance.run import baseline, run_case
from tests.conformance.suites import SUITES, suite

PROFILES = ("onnx", "ort-cpu")
PARTS = 10
RANDOM = "test_bernoulli"
"""Expected outputs that come from another generator prove nothing of the evaluator."""


def part_of(case: Case) -> int:
    """Returns to which tenth a case belongs: neighbours, which test one operator, are spread."""
    return zlib.crc32(case.name.encode()) % PARTS


def failures(cases: Iterable[Case], profile: str, *, oracle: bool = False) -> list[str]:
    """Returns what fails after us although plain ONNX Runtime passes it, and disagreements."""
    cases = list(cases)
    known = baseline(cases)
    found = []
    for case in cases:
        outcome = run_case(case, known[case.name], profile, "canonicalize", oracle=oracle)
        if outcome.baseline and outcome.emitted:
            found.append(f"{case.name}: emitted: {outcome.emitted}")
        if outcome.specs and outcome.evaluated and not case.name.startswith(RANDOM):
            found.append(f"{case.name}: evaluated: {outcome.evaluated}")
    return found


def test_suites_are_there() -> None:
    sizes = {name: len(suite(name)) for name in SUITES}
    assert sizes["node"] > 1800
    assert sizes["real"] == 9
    assert min(sizes["simple"], sizes["pytorch-converted"], sizes["pytorch-operator"]) > 20
    passing = sum(baseline(suite("node")).values())
    assert passing >= 1399  # by ONNX Runtime alone, opsets under development included


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, PARTS))]
)
def test_node_cases(part: int, profile: str) -> None:
    assert failures((case for case in suite("node") if part_of(case) == part), profile) == []


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["simple", "pytorch-converted", "pytorch-operator"])
def test_recorded_suites(name: str, profile: str) -> None:
    assert failures(suite(name), profile) == []


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_light_models(profile: str) -> None:
    # their constant weights give logits of 1e10, whose softmax is noise in f32
    assert failures(suite("real"), profile, oracle=True) == []
