"""Quality meters against scipy, numpy's f64 formulas written out, and numbers made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, rel_entr, softmax
from scipy.stats import rankdata, spearmanr

from regraft.ir.errors import CheckError, InputError
from regraft.passes.quality import (
    IGNORED,
    AccuracyMeter,
    DivergenceMeter,
    EmbeddingMeter,
    PerplexityMeter,
    next_tokens,
    pooled,
    spearman,
)
from regraft.passes.quality.correlation import average_ranks

SUMS = 1e-12
"""Relative: both sides are f64 sums of at most some thousand terms."""


def logits_of(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


# -- rank correlation


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=40), st.integers(0, 9))
def test_ranks_and_spearman_are_those_of_scipy_with_ties(values: list[int], seed: int) -> None:
    a = np.array(values)
    np.testing.assert_array_equal(average_ranks(a), rankdata(a))
    b = a + np.random.default_rng(seed).integers(-2, 3, a.size)
    if len(set(a.tolist())) > 1 and len(set(b.tolist())) > 1:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_equal_numbers_does_not_exist() -> None:
    with pytest.raises(InputError, match="does not exist"):
        spearman(np.ones(4), np.arange(4))
    with pytest.raises(InputError, match="3 and 2 numbers"):
        spearman(np.arange(3), np.arange(2))


# -- embeddings


def test_cosines_by_hand() -> None:
    meter = EmbeddingMeter()
    # equal direction; 60 degrees: 1/2; 45 degrees: sqrt(1/2); lengths do not count
    meter.update(np.array([[2.0, 0]]), np.array([[5.0, 0]]))
    meter.update(np.array([[1.0, 0], [0, 3]]), np.array([[0.5, math.sqrt(0.75)], [1.0, 1]]))
    found = meter.result()
    assert found.count == 3
    assert found.mean == pytest.approx((1 + 0.5 + math.sqrt(0.5)) / 3, rel=SUMS)
    assert (found.worst_idx, found.num_pairs) == (1, 3)
    assert found.worst == pytest.approx(0.5, rel=SUMS)


def test_pairs_and_people_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 5))
    b = a + rng.normal(0, 0.7, (12, 5))
    people = rng.integers(0, 5, (12, 12)) / 5
    meter = EmbeddingMeter()
    for rows in (slice(0, 5), slice(5, 12)):
        meter.update(a[rows].astype(np.float32), b[rows].astype(np.float32))
    found = meter.result(people)
    above = np.triu_indices(12, 1)
    similar = [
        (x @ x.T)[above] for x in (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (a, b))
    ]
    assert found.num_pairs == 66
    # ranks of similarities that differ by more than f32 rounding of the inputs
    assert found.pair_spearman == pytest.approx(spearmanr(*similar).statistic, abs=1e-3)
    for mine, theirs in zip((found.human_reference, found.human_candidate), similar, strict=True):
        assert mine == pytest.approx(spearmanr(theirs, people[above]).statistic, abs=1e-3)


def test_memory_of_pairs_is_bounded_and_cosines_are_of_all() -> None:
    meter = EmbeddingMeter(max_paired=4)
    rows = np.random.default_rng(0).normal(size=(10, 3))
    for row in rows:
        meter.update(row[None], row[None])
    found = meter.result()
    assert (found.count, found.num_pairs, found.pair_spearman) == (10, 6, pytest.approx(1.0))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_names_its_item(bad: float) -> None:
    meter = EmbeddingMeter()
    meter.update(np.ones((2, 3)), np.ones((2, 3)))
    rows = np.ones((2, 3))
    rows[1] = bad
    with pytest.raises(CheckError, match="item 3 has an embedding of the second model"):
        meter.update(np.ones((2, 3)), rows)


def test_other_sizes_of_people_are_refused() -> None:
    meter = EmbeddingMeter()
    meter.update(np.eye(3), np.eye(3))
    with pytest.raises(InputError, match=r"\[4, 4\] for 3 items"):
        meter.result(np.eye(4))
    with pytest.raises(InputError, match="no item"):
        EmbeddingMeter().result()


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", [[2.0, 0], [3.0, 1]]), ("first", [[1.0, 0], [3.0, 1]]), ("last", [[3.0, 0], [3, 1]])],
)
def test_pooling_counts_only_tokens_of_the_mask(how: Any, expected: list[list[float]]) -> None:
    states = np.array([[[1.0, 0], [3, 0], [9, 9]], [[9, 9], [3, 1], [9, 9]]])
    mask = np.array([[1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(pooled(states, mask, how), expected)
    np.testing.assert_array_equal(pooled(states[0]), states[0])  # pooled already


# -- perplexity


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    meter = PerplexityMeter()
    meter.update(np.zeros((2, 5, 7), np.float32), np.ones((2, 5), np.int64))
    found = meter.result()
    assert found.count == 8
    assert found.perplexity == pytest.approx(7.0, rel=SUMS)


def test_perplexity_is_that_of_the_formula_with_masks_and_labels() -> None:
    logits, tokens = logits_of(3, 6, 11), np.random.default_rng(1).integers(0, 11, (3, 6))
    mask = np.ones((3, 6), np.int64)
    mask[0, 4:], mask[1, :2] = 0, 0
    labels = tokens.copy()
    labels[2, 3] = IGNORED
    total, count = 0.0, 0
    wide = logits.astype(np.float64)
    for b in range(3):
        for t in range(5):
            if mask[b, t] and mask[b, t + 1] and labels[b, t + 1] != IGNORED:
                total += logsumexp(wide[b, t]) - wide[b, t, tokens[b, t + 1]]
                count += 1
    meter = PerplexityMeter()
    meter.update(logits[:1], labels[:1], mask[:1])
    meter.update(logits[1:], labels[1:], mask[1:])
    found = meter.result()
    assert found.count == count == 3 + 3 + 4
    assert found.nll == pytest.approx(total / count, rel=SUMS)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=SUMS)


def test_large_logits_and_a_hopeless_model_are_no_overflow() -> None:
    logits = np.full((1, 2, 3), -1e30, np.float32)
    logits[..., 0] = 1e4
    meter = PerplexityMeter()
    meter.update(logits, np.array([[0, 0]]))
    assert meter.result().perplexity == 1.0
    meter.update(logits, np.array([[0, 2]]))
    assert meter.result().perplexity == math.inf


@pytest.mark.parametrize("batches", [1, 4])
def test_results_do_not_depend_on_batches_or_chunks(
    batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.passes.quality.predictions._CHUNK_ELEMENTS", 16)
    a, b = logits_of(4, 5, 9), logits_of(4, 5, 9, seed=2)
    meter = DivergenceMeter()
    for rows in np.array_split(np.arange(4), batches):
        meter.update(a[rows], b[rows])
    p, q = softmax(a.astype(np.float64), -1), softmax(b.astype(np.float64), -1)
    each = rel_entr(p, q).sum(-1)
    found = meter.result()
    assert found.mean == pytest.approx(each.mean(), rel=SUMS)
    assert found.worst == pytest.approx(each.max(), rel=SUMS)
    assert found.agreement == (a.argmax(-1) == b.argmax(-1)).mean()


# -- divergence


def test_divergence_by_hand() -> None:
    # KL((1/2, 1/2) || (3/4, 1/4)) = ln 2 - (ln 3) / 2, and the largest is at another place
    meter = DivergenceMeter()
    meter.update(np.log([[0.5, 0.4999999]]), np.log([[0.25, 0.75]]))
    found = meter.result()
    assert found.mean == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-6)
    assert found.agreement == 0.0


def test_divergence_counts_only_masked_in_positions_and_is_zero_for_equal_ones() -> None:
    a = logits_of(2, 4, 6)
    b, mask = a.copy(), np.ones((2, 4), np.int64)
    b[1, 2] = b[1, 2, ::-1]
    mask[1, 2] = 0
    meter = DivergenceMeter()
    meter.update(a, b, mask)
    found = meter.result()
    assert (found.mean, found.worst, found.agreement, found.count) == (0.0, 0.0, 1.0, 7)


def test_what_the_first_rules_out_does_not_count_and_what_the_second_does_is_infinite() -> None:
    ruled = np.array([[0.0, 0.0, -np.inf]])
    meter = DivergenceMeter()
    meter.update(ruled, np.zeros((1, 3)))
    assert meter.result().mean == pytest.approx(math.log(1.5), rel=SUMS)
    meter.update(np.zeros((1, 3)), ruled)
    assert meter.result().mean == math.inf


# -- accuracy


def test_accuracy_by_hand() -> None:
    meter = AccuracyMeter()
    meter.update(np.array([[0.0, 1], [2, 1], [1, 1]]), np.array([1, 1, 0]))
    meter.update(np.array([[[0.0, 1], [5, 0]]]), np.array([[1, IGNORED]]))
    found = meter.result()
    assert (found.accuracy, found.count) == (3 / 4, 4)


def test_labels_of_language_models_are_the_next_tokens() -> None:
    labels = next_tokens(np.zeros((1, 4, 9)), np.array([[5, 6, 7, 8]]), np.array([[1, 1, 1, 0]]))
    assert labels.tolist() == [[6, 7, IGNORED, IGNORED]]


# -- what is refused


def embedded(*shapes: tuple[int, int]) -> None:
    """Compares arrays of some shapes with themselves, batch by batch."""
    meter = EmbeddingMeter()
    for shape in shapes:
        meter.update(np.ones(shape), np.ones(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AccuracyMeter().update(np.zeros((2, 3)), np.array([0, 3])), "from 0 to 3 for 3"),
        (lambda: AccuracyMeter().update(np.zeros((2, 3)), np.array([0])), r"\[2, 3\] for labels"),
        (lambda: PerplexityMeter().update(np.zeros((2, 3)), np.zeros(2, int)), "for tokens"),
        (lambda: DivergenceMeter().update(np.zeros((2, 3)), np.zeros((2, 4))), r"\[2, 4\]"),
        (lambda: DivergenceMeter().update(*np.zeros((2, 2, 3)), np.ones(3)), r"mask \[3\]"),
        (lambda: embedded((1, 53), (1, 57)), "53 numbers and of 57"),
        (lambda: AccuracyMeter().result(), "no label counts"),
        (lambda: PerplexityMeter().result(), "no token is predicted"),
        (lambda: DivergenceMeter().result(), "no position counts"),
    ],
)
def test_what_does_not_belong_together_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_nan_is_an_error_and_never_a_number() -> None:
    rows = np.zeros((2, 3))
    rows[1, 1] = np.nan
    for meter in (AccuracyMeter(),):
        with pytest.raises(CheckError, match="NaN"):
            meter.update(rows, np.zeros(2, int))
    with pytest.raises(CheckError, match="NaN"):
        DivergenceMeter().update(np.zeros((2, 3)), rows)
