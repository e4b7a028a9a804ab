"""Random modules over the rule table: what is pruned equals the masked module, always."""

import pytest

from regraft.ir.errors import RegraftError
from regraft.passes.analysis.coupling import builder, spaces
from tests.passes.pruning.checking import TOLERANCE, prune_and_compare
from tests.passes.pruning.random_modules import inputs_of, random_module


def _run(first: int, last: int) -> tuple[int, int]:
    changed = groups = 0
    for seed in range(first, last):
        outcome = prune_and_compare(random_module(seed), inputs_of(seed), seed)
        assert outcome.error <= TOLERANCE, (seed, outcome)
        changed += outcome.change > 1e-6
        groups += outcome.groups
    return changed, groups


def test_pruned_equals_masked() -> None:
    changed, groups = _run(0, 150)
    assert changed > 130  # nearly every pruning changed the outputs, else nothing was tested
    assert groups > 600


@pytest.mark.parametrize("seed", [21746])
def test_what_was_wrong_once(seed: int) -> None:
    # blocks that choose their own positions, over a leaf that stands in the axis three times
    outcome = prune_and_compare(random_module(seed), inputs_of(seed), seed)
    assert outcome.error <= TOLERANCE


@pytest.mark.slow
def test_pruned_equals_masked_two_thousand_times() -> None:
    changed, groups = _run(10_000, 12_000)
    assert changed > 1800
    assert groups > 8000


def test_a_forgotten_pin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "may_drop", lambda op, label: True)
    wrong = 0
    for seed in range(60):
        try:
            outcome = prune_and_compare(random_module(seed), inputs_of(seed), seed)
            wrong += outcome.error > TOLERANCE
        except (RegraftError, AssertionError, ValueError, IndexError):
            wrong += 1
    assert wrong > 15


def test_a_forgotten_tie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = spaces.unify

    def forgetful(a: object, b: object, why: object) -> None:
        if why.op not in ("mul", "add"):  # type: ignore[attr-defined]  # a pin
            plain(a, b, why)  # type: ignore[arg-type]  # spaces and a pin

    monkeypatch.setattr(builder, "unify", forgetful)
    wrong = 0
    for seed in range(60):
        try:
            outcome = prune_and_compare(random_module(seed), inputs_of(seed), seed)
            wrong += outcome.error > TOLERANCE
        except (RegraftError, AssertionError, ValueError, IndexError):
            wrong += 1
    assert wrong > 5
