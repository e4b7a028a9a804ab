"""A short run of the fuzzer; `python -m benchmarks.core --only fuzz` runs twenty thousand cases."""

from __future__ import annotations

import sys

import pytest

from benchmarks.core_fuzz import FLIPPED, MISSES, Tally, fuzz
from benchmarks.measure import Settings
from benchmarks.models import ModelMissingError, find, named
from tests.fuzz.graphs import SIZES, random_inputs, random_model
from tests.fuzz.worker import flip, run_graph

SETTINGS = Settings(sys.executable, "", timeout_s=60.0, rounds=1)
FIRST = 100_000  # seeds that the long run does not reach


def test_random_graphs_keep_their_outputs() -> None:
    tally = fuzz(SETTINGS, "graphs", FIRST, FIRST + 200, [])
    assert tally.misses == []
    assert tally.counts["equal"] >= 195  # nearly every graph was run, at every size


def test_damaged_models_are_refused_or_right() -> None:
    try:
        for name in FLIPPED:
            find(named(name))
    except ModelMissingError as error:
        pytest.skip(str(error))
    tally = fuzz(SETTINGS, "flips", FIRST, FIRST + 120, FLIPPED)
    assert tally.misses == []
    assert tally.counts["equal"] > 10
    assert tally.counts["refused"] > 30


@pytest.mark.parametrize("outcome", MISSES)
def test_a_bad_outcome_is_a_miss(outcome: str) -> None:
    tally = Tally()
    tally.note(7, outcome, "why")
    assert tally.misses == [f"case 7: {outcome}: why"]


def test_generator_and_damage_are_repeatable() -> None:
    assert random_model(5) == random_model(5)
    assert random_model(5) != random_model(6)
    inputs = random_inputs(5, SIZES[0])
    assert inputs.keys() == random_inputs(5, SIZES[0]).keys()
    data = bytes(range(256)) * 8
    assert flip(data, 3) == flip(data, 3) != data


def test_values_that_mix_rows_are_no_norm() -> None:
    """A graph in which a mean of rows meets the rows at another axis."""
    outcome, detail = run_graph(1441)
    assert outcome == "equal", detail
