"""Generated samples: sizes that belong together are found where nothing declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regraft.ir.errors import UnsupportedError
from regraft.ir.text import parse_module
from regraft.passes.check.runners import EvalRunner, accepts
from regraft.passes.check.samples import generate_samples

STATEFUL = parse_module("""\
graph(%x : f32[N, T], %h : f32[2, M, 4]) {
  return %x, %h
}
""")
"""A recurrent model of an exporter that names no sizes: `M` is the batch, which only runs show."""


def same_batch(inputs: Mapping[str, Any]) -> bool:
    return bool(inputs["x"].shape[0] == inputs["h"].shape[1] and inputs["x"].shape[1] >= 200)


@pytest.mark.parametrize("count", [None, 1])
def test_batch_of_a_state_is_found(count: int | None) -> None:
    samples = generate_samples(STATEFUL, same_batch, max_samples=count)
    sizes = [sample.binding["N"] for sample in samples]
    assert [sample.binding["M"] for sample in samples] == sizes
    assert sizes == ([2, 1, 3] if count is None else [2])
    assert all(same_batch(sample.inputs) for sample in samples)


def test_sizes_that_run_apart_are_not_tied() -> None:
    samples = generate_samples(STATEFUL, lambda inputs: True)
    assert any(sample.binding["N"] != sample.binding["M"] for sample in samples)


def test_nothing_runs_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="at none of the generated sizes"):
        generate_samples(STATEFUL, lambda inputs: False)


def test_sizes_at_which_outputs_are_nan_are_passed_over() -> None:
    # three convolutions of stride 4 leave nothing of a small image, and its mean is NaN
    steps = [
        f"%a{i + 1} = conv(%a{i}, %w) {{strides = [4, 4], dilations = [1, 1], pads = [0, 0, 0, 0]}}"
        for i in range(3)
    ]
    module = parse_module(
        "weight @w : f32[3, 3, 4, 4] role=param = random(1)\n"
        "graph(%a0 : f32[B, 3, H, H]) {\n%w = weight @w\n"
        + "\n".join(steps)
        + "\n%y = global_average_pool(%a3)\nreturn %y\n}\n"
    )
    run = EvalRunner(module)
    for sample in generate_samples(module, accepts(run)):
        assert sample.binding["H"] >= 64
        assert np.isfinite(run(sample.inputs)["y"]).all()


def test_sizes_at_which_outputs_are_empty_are_passed_over() -> None:
    # a runtime may refuse a pooling that leaves nothing, another gives nothing
    module = parse_module(
        "graph(%x : f32[B, N]) {\n%y = slice(%x) {starts = [20], ends = [9999], axes = [1]}\n"
        "return %y\n}\n"
    )
    run = EvalRunner(module)
    samples = generate_samples(module, accepts(run))
    assert all(sample.binding["N"] > 20 for sample in samples)
    assert len(samples) == 3


def test_outputs_that_are_empty_at_every_size_are_run_as_a_last_resort() -> None:
    module = parse_module(
        "graph(%x : f32[B, N]) {\n%y = slice(%x) {starts = [0], ends = [0], axes = [1]}\n"
        "return %y\n}\n"
    )
    run = EvalRunner(module)
    with pytest.raises(UnsupportedError, match="at none of the generated sizes"):
        generate_samples(module, accepts(run))
    with_empty = accepts(run, with_empty=True)
    assert len(generate_samples(module, accepts(run), last_resort=with_empty)) == 3


def test_sizes_smaller_than_a_window_are_passed_over() -> None:
    # the mean over no positions is a number for some runtimes
    module = parse_module(
        "graph(%x : f32[B, 1, N]) {\n%a = slice(%x) {starts = [9], ends = [9999], axes = [2]}\n"
        "%y = reduce_sum(%a) {axes = [2]}\nreturn %y\n}\n"
    )
    samples = generate_samples(module, lambda inputs: True)
    assert all(sample.binding["N"] > 9 for sample in samples)


def test_a_mask_whose_running_sum_is_a_position_is_zeros_and_ones() -> None:
    # positions = cumsum(mask) * mask + 1, as decoders with padding on the left have them
    module = parse_module(
        "weight @table : f32[66, 2] role=param = random(1)\n"
        "graph(%mask : i64[B, S]) {\n%sum = cumsum(%mask) {axis = 1}\n%at = mul(%sum, %mask)\n"
        "%table = weight @table\n%y = gather(%table, %at) {axis = 0}\nreturn %y\n}\n"
    )
    samples = generate_samples(module, accepts(EvalRunner(module)))
    assert all(set(np.unique(sample.inputs["mask"])) <= {0, 1} for sample in samples)
    assert any((sample.inputs["mask"] == 0).any() for sample in samples)
