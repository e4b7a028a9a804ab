"""Histograms that stream: all values count, and ranges hold the bulk of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.passes.quantization.histogram import Histogram, range_by
from regraft.passes.quantization.ranges import rounded


def streamed(*batches: Any) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.update(np.asarray(batch, np.float32))
    return found


def normal(seed: int, count: int = 20000) -> Any:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def test_batches_with_growing_ranges_are_all_counted() -> None:
    batches = [normal(i) * 3**i for i in range(5)]
    found = streamed(*batches)
    assert found.counts.sum() == sum(batch.size for batch in batches)
    every = np.concatenate(batches)
    assert (found.low, found.high) == (every.min(), every.max())
    # a step of the last range is the error of the first counts
    mean = float(found.counts @ np.abs(found.centres)) / every.size
    assert mean == pytest.approx(float(np.abs(every).mean()), rel=0.01)


def test_zeros_alone_have_a_range() -> None:
    found = streamed(np.zeros(10), np.zeros(10))
    assert float(range_by(found, "mse").scale) > 0


@pytest.mark.parametrize("criterion", ["percentile", "mse", "entropy"])
def test_an_outlier_does_not_set_the_range(criterion: Any) -> None:
    values = np.append(normal(0, 200000), np.float32(400))
    found = streamed(values)
    full, cut = range_by(found, "minmax"), range_by(found, criterion)
    assert cut.scale < full.scale
    bulk = values[:-1]
    before, after = (float(np.square(rounded(bulk, r) - bulk).sum()) for r in (full, cut))
    assert after < before


def test_least_square_error_is_that_of_the_values() -> None:
    values = normal(0) ** 3
    found = streamed(values)
    losses = {
        criterion: float(np.square(rounded(values, range_by(found, criterion)) - values).sum())
        for criterion in ("minmax", "percentile", "mse", "entropy")
    }
    assert losses["mse"] <= 1.01 * min(losses.values())
