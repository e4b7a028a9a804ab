"""Ablation driven by the loss of a task."""

import itertools
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context
from regraft.passes.pruning.ablate import Ablate
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.masked import run_masked

Array = np.ndarray[Any, Any]

UNITS, CLASSES = 32, 5
HARMFUL = np.arange(20, 32)


def _module() -> Module:
    """A classifier, a part of whose units only disturb it."""
    module = spelled(
        "%h = matmul(%x, %up)\n%a = relu(%h)\n%y = matmul(%a, %down)", "B, 16",
        weights={"up": f"f32[16, {UNITS}]", "down": f"f32[{UNITS}, {CLASSES}]"},
    )  # fmt: skip
    down = module.weights["down"].numpy().copy()
    down[HARMFUL] *= 0.2
    module.weights.set("down", ArrayWeight(down))
    return module


def _samples() -> list[dict[str, Array]]:
    rng = np.random.default_rng(2)
    clean = _module()
    down = clean.weights["down"].numpy().copy()
    down[HARMFUL] = 0
    clean.weights.set("down", ArrayWeight(down))
    samples = []
    for _ in range(4):
        x = rng.standard_normal((16, 16)).astype(np.float32)
        labels = evaluate(clean, {"x": x}, oracle=True)["y"].argmax(-1)
        samples.append({"x": x, "labels": labels})
    return samples


def _context() -> Context:
    return Context(samples=_samples(), activations=OrtActivations())


def test_losses_of_accepted_removals_never_rise() -> None:
    module = _module()
    result = Ablate().run(module, _context())
    trace = result.decisions["trace"]
    assert len(trace) > 1
    assert all(after <= before for before, after in itertools.pairwise(trace))
    assert module.weights["down"].shape[0] < UNITS
    assert result.stats["loss-after"] <= result.stats["loss-before"]


def test_the_sliced_module_equals_the_masked_one() -> None:
    module, dense = _module(), _module()
    result = Ablate(tolerance=0.5).run(module, _context())
    feeds = {"x": _samples()[0]["x"]}
    expected = run_masked(Coupling(dense), result.decisions["plan"], feeds)["y"]
    found = evaluate(module, feeds, oracle=True)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_recorded_removals_are_taken_again() -> None:
    first, again = _module(), _module()
    result = Ablate(tolerance=0.1).run(first, _context())
    Ablate(tolerance=0.1).run(again, Context(replay={"ablate": result.decisions}))
    np.testing.assert_array_equal(first.weights["down"].numpy(), again.weights["down"].numpy())


def test_without_labels_nothing_is_removed_that_shows() -> None:
    given = [{"x": sample["x"]} for sample in _samples()]
    ctx = Context(samples=given, activations=OrtActivations())
    strict, loose = _module(), _module()
    assert not Ablate().run(strict, ctx).changed
    assert Ablate(tolerance=0.05).run(loose, ctx).changed


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="fractions between 0 and 1"):
        Ablate(parts=(1.5,)).run(_module(), _context())
    with pytest.raises(UsageError, match="nothing here runs"):
        Ablate().run(_module(), Context(samples=_samples()))
