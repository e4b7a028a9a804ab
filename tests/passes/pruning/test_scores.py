"""Criteria measured on samples, each against its definition written out for one layer."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context, Samples
from regraft.passes.pruning import Prune
from regraft.passes.pruning.criteria import Criterion, score
from regraft.passes.pruning.gradients import hessian_gradient
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.test_measured import Differences
from tests.passes.pruning.test_prune import stack

Array = np.ndarray[Any, Any]

UNITS = 12


def _samples(count: int = 8) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, 3, 16)).astype(np.float32)} for _ in range(count)]


def _layer() -> Module:
    return spelled(
        "%h = matmul(%x, %up)\n%a = relu(%h)\n%y = matmul(%a, %down)",
        weights={"up": f"f32[16, {UNITS}]", "down": f"f32[{UNITS}, 5]"},
    )


def _scores(module: Module, criterion: Criterion, ctx: Context) -> Array:
    coupling = Coupling(module)
    (group,) = coupling.groups
    return np.asarray(score(coupling, criterion, "mean", "none", 0, ctx)[group][0])


def _flow(module: Module, samples: list[dict[str, Array]]) -> tuple[Array, Array]:
    """Returns what the units carry, f64[rows, units], and the weight that reads them."""
    x = np.concatenate([each["x"] for each in samples]).reshape(-1, 16).astype(np.float64)
    up, down = (module.weights[name].numpy().astype(np.float64) for name in ("up", "down"))
    return np.maximum(x @ up, 0), down


def test_wanda_is_the_norm_of_what_flows_by_the_weights() -> None:
    module, samples = _layer(), _samples()
    flow, down = _flow(module, samples)
    found = _scores(module, "wanda", Context(samples=samples, activations=OrtActivations()))
    norms = np.sqrt(np.square(flow).mean(0))
    np.testing.assert_allclose(found, norms * np.abs(down).sum(1), rtol=1e-5)


def test_fluctuation_is_the_variance_by_the_weights_and_zero_for_constants() -> None:
    module, samples = _layer(), _samples()
    up = module.weights["up"].numpy().copy()
    up[:, 3] = 0
    module.weights.set("up", ArrayWeight(up))
    flow, down = _flow(module, samples)
    found = _scores(module, "fluctuation", Context(samples=samples, activations=OrtActivations()))
    np.testing.assert_allclose(found, flow.var(0) * np.square(down).sum(1), rtol=1e-5, atol=1e-12)
    assert found[3] == 0


def test_obs_is_what_is_left_when_the_others_make_up() -> None:
    module, samples = _layer(), _samples()
    up = module.weights["up"].numpy().copy()
    up[:, 7] = 2 * up[:, 2]  # a unit that another can stand in for
    module.weights.set("up", ArrayWeight(up))
    ctx = Context(samples=samples, activations=OrtActivations())
    flow, down = _flow(module, samples)
    damping = 0.01 * np.square(flow).sum(0).mean()
    wide = np.concatenate([flow, np.sqrt(damping) * np.eye(UNITS)])
    whole = np.square(flow @ down).sum()
    expected = []
    for unit in range(UNITS):
        others = np.delete(np.arange(UNITS), unit)
        fit = np.linalg.lstsq(wide[:, others], wide @ down, rcond=None)[0]
        expected.append(np.square(wide[:, others] @ fit - wide @ down).sum() / whole)
    found = _scores(module, "obs", ctx)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    energy = _scores(module, "energy", ctx)
    # the larger twin has the most energy of both, and is not missed
    assert found[7] < 0.2 * energy[7]


@pytest.mark.parametrize("criterion", ["fisher", "snip"])
def test_scores_of_gradients_are_their_definitions(criterion: Any) -> None:
    module, samples = _layer(), _samples(3)
    source = Differences()
    gradients = list(source.gradients(module, samples))
    found = _scores(module, criterion, Context(samples=samples, gradients=source))
    parts = []
    for name, axis in (("up", 0), ("down", 1)):
        w = module.weights[name].numpy().astype(np.float64)
        g = np.stack([each[name] for each in gradients])
        each = np.square(w) * np.square(g).mean(0) / 2
        if criterion == "snip":
            each = np.abs(w * g.mean(0))
        parts.append(each.sum(axis))
    np.testing.assert_allclose(found, np.mean(parts, 0), rtol=1e-6)


class Linear:
    """Gradients of half the mean square of `x w`."""

    def gradients(
        self, module: Module, samples: Samples, weights: Sequence[str] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Yields the gradient of one sample."""
        w = module.weights["w"].numpy().astype(np.float64)
        for sample in samples:
            x = sample["x"].reshape(-1, 16).astype(np.float64)
            yield {"w": x.T @ (x @ w) / (len(x) * w.shape[1])}


def test_grasp_multiplies_the_hessian_by_the_gradient() -> None:
    module = spelled("%y = matmul(%x, %w)", weights={"w": "f32[16, 5]"})
    samples = _samples(4)
    w = module.weights["w"].numpy().astype(np.float64)
    x = np.concatenate([each["x"] for each in samples]).reshape(-1, 16).astype(np.float64)
    hessian = x.T @ x / (len(x) * 5)  # by each column of w
    found = hessian_gradient(module, Linear(), samples, {"w": w})
    # steps are a hundredth of f32 weights: five of their seven digits are left
    np.testing.assert_allclose(found["w"], hessian @ (hessian @ w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", ["fisher", "snip", "grasp"])
def test_gradients_are_asked_for_by_name(criterion: Any) -> None:
    with pytest.raises(UsageError, match=f"`{criterion}` needs gradients"):
        Prune("flops:0.5", criterion=criterion).run(_layer(), Context(samples=_samples()))


@pytest.mark.parametrize("criterion", ["wanda", "fluctuation", "obs", "sequential"])
def test_criteria_prune_to_the_target_and_repair(criterion: Any) -> None:
    ctx = Context(samples=_samples(30), activations=OrtActivations())
    result = Prune("flops:0.5", criterion=criterion).run(stack(), ctx)
    assert result.stats["achieved"] == pytest.approx(0.5, rel=0.01)
    assert result.stats["error-repaired"] < result.stats["error-pruned"]
    with pytest.raises(UsageError, match="no source"):
        Prune("flops:0.5", criterion=criterion).run(stack(), Context(samples=_samples()))
