"""Shares of tokens that two models have in common."""

import numpy as np
import pytest

from benchmarks.quant_decoder import agreement


def scores(seed=0, count=4000, size=6):
    logits = np.random.default_rng(seed).normal(size=(1, count, size)) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_agrees_with_itself(temperature):
    assert agreement([scores()], [scores()], temperature) == 1.0


def test_greedy_agreement_is_that_of_the_largest():
    a, b = scores(0), scores(1)
    assert agreement([a], [b], 0.0) == (a.argmax(-1) == b.argmax(-1)).mean()


def test_samples_follow_the_softmax_of_their_temperature():
    """Against a model that always says the first token, agreement is how often that is sampled."""
    a = np.repeat(np.log([[[0.5, 0.3, 0.2]]]), 60_000, 1)
    first = np.repeat(np.array([[[0.0, -1e9, -1e9]]]), 60_000, 1)
    for temperature in (0.5, 1.0):
        powers = np.array([0.5, 0.3, 0.2]) ** (1 / temperature)
        want = powers[0] / powers.sum()
        # five standard deviations of a share of 60,000
        assert agreement([a], [first], temperature) == pytest.approx(want, abs=0.0103)


def test_noise_shared_by_both_makes_near_models_agree_more_than_chance():
    a = scores()
    near = a + np.random.default_rng(5).normal(size=a.shape) * 0.05
    chance = np.exp(a).max(-1).mean()
    assert chance < 0.8 < 0.9 < agreement([a], [near], 1.0) < 1
