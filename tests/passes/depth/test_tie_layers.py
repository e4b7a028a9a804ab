"""Layers that share weights: exact at full rank, counted by the formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.verify import verify
from regraft.passes.depth.tie_layers import TieLayers
from regraft.passes.protocol import Context
from tests.passes.depth.stacks import samples, stack

EPS = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("init", ["average", "lower", "stepwise"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_full_rank_is_the_same_model(init: str, block: int) -> None:
    module, reference = stack(6, scale=0.3), stack(6, scale=0.3)
    result = TieLayers(block=block, rank=8, init=init).run(module, Context())  # type: ignore[arg-type]
    verify(module)
    assert result.stats["matrices"] == 12
    assert result.stats["worst-error"] < 1e-6
    sample = samples(1)[0]
    got, want = (evaluate(each, sample)["y"] for each in (module, reference))
    # every matrix is a sum of two, rounded to f32, and so are its results, six layers deep
    np.testing.assert_allclose(got, want, rtol=0, atol=256 * EPS * np.abs(want).max())


def test_errors_fall_with_the_rank_and_parameters_are_as_the_formula_says() -> None:
    errors: list[float] = []
    for rank in range(9):
        module = stack(6)
        result = TieLayers(block=2, rank=rank).run(module, Context())
        errors.append(sum(layer.error**2 for layer in result.layers) ** 0.5)
        matrices = {n: module.weights[n].numpy() for n in module.weights if n[0] != "h"}
        held = sum(array.size for name, array in matrices.items() if "bias" not in name)
        # shared + Σ r (d_in + d_out), over 6 layers of two matrices of 8 x 16
        assert held == 2 * 2 * 8 * 16 + 6 * 2 * rank * (8 + 16)
        assert held == result.stats["numbers"]
        assert len([name for name in module.weights if name.endswith("shared")]) == 4
        verify(module)
    assert all(a > b for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-6


def test_the_first_layers_stay_what_they_are_without_low_rank_parts() -> None:
    module, reference = stack(4), stack(4)
    TieLayers(block=2, rank=0, init="lower").run(module, Context())
    for name in ("up", "down"):
        for place in (0, 1):
            shared = module.weights[f"{place}.{name}.shared"].numpy()
            np.testing.assert_array_equal(shared, reference.weights[f"{place}.{name}"].numpy())
    module = stack(4)
    TieLayers(block=2, rank=0, init="stepwise").run(module, Context())
    # the first and the last layer
    np.testing.assert_array_equal(
        module.weights["1.up.shared"].numpy(), reference.weights["3.up"].numpy()
    )


def test_stacks_of_another_length_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no stack has a multiple of 4 layers\n.*repeat: 6"):
        TieLayers(block=4).run(stack(6), Context())
