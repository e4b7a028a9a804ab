"""Criteria measured on samples: gradients and activations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.calibration import gradient_source
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context, Samples
from regraft.passes.pruning import Prune
from regraft.passes.pruning.criteria import score
from regraft.passes.pruning.plan import parse_ranges
from tests.passes.pruning.test_prune import WIDTH, run, stack


@dataclass(frozen=True)
class Differences:
    """Gradients of half the mean square of the output, by central differences in f64."""

    step: float = 1e-4

    def gradients(
        self, module: Module, samples: Samples, weights: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields one gradient per weight and sample."""
        for sample in samples:
            found = {}
            for name in weights or list(module.weights):
                stored = module.weights[name]
                gradient = np.zeros(stored.shape)
                for idx in np.ndindex(*stored.shape):
                    ends = []
                    for sign in (1, -1):
                        array = stored.numpy().copy()
                        array[idx] += sign * self.step
                        module.weights.set(name, ArrayWeight(array))
                        y = evaluate(module, sample, oracle=True)["y"]
                        ends.append(np.square(y).mean() / 2)
                    gradient[idx] = (ends[0] - ends[1]) / (2 * self.step)
                module.weights.set(name, stored)
                found[name] = gradient
            yield found


def _samples(count: int = 2) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, 3, 16)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("criterion", ["taylor", "taylor-sum"])
def test_taylor_is_weight_times_gradient_per_unit(criterion: Any) -> None:
    module, samples = stack(width=4, layers=1), _samples()
    ctx = Context(samples=samples, gradients=Differences())
    coupling = Coupling(module)
    group = next(g for g in coupling.groups if ("up0", 1) in g.weights)
    found = score(coupling, criterion, "sum", "none", 0, ctx)[group][0]
    expected = np.zeros(4)
    for gradients in Differences().gradients(module, samples, ["up0", "bias0", "down0"]):
        for name, axis in (("up0", 1), ("bias0", 0), ("down0", 0)):
            product = module.weights[name].numpy() * gradients[name]
            others = tuple(i for i in range(product.ndim) if i != axis)
            whole = np.abs(product).sum(others) if criterion == "taylor" else product.sum(others)
            expected += np.abs(whole) / len(samples)
    assert np.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
def test_a_measured_criterion_says_what_it_lacks(criterion: Any) -> None:
    with pytest.raises(UsageError, match="and there is no source"):
        Prune("params:0.5", criterion=criterion).run(stack(), Context(samples=_samples()))
    ctx = Context(gradients=Differences(), activations=OrtActivations())
    with pytest.raises(UsageError, match="there are none") as caught:
        Prune("params:0.5", criterion=criterion).run(stack(), ctx)
    assert "--calibrate" in str(caught.value.hint)


def test_dead_neurons_are_found_by_what_they_carry_and_go_without_a_trace() -> None:
    module, rng = stack(layers=1), np.random.default_rng(0)
    dead = rng.permutation(WIDTH)[: WIDTH // 2]
    bias = module.weights["bias0"].numpy().copy()
    bias[dead] = -1e4  # far below what the product before it reaches: relu gives 0
    module.weights.set("bias0", ArrayWeight(bias))
    dense = run(module)
    ctx = Context(samples=_samples(), activations=OrtActivations())
    whole = sum(int(np.prod(module.weights[name].shape)) for name in module.weights)
    target = 1 - len(dead) * (32 + 1 + 32) / whole
    result = Prune(f"params:{target}", criterion="activation", keep=("first", "last")).run(
        module, ctx
    )
    (group,) = result.decisions["plan"]["groups"]
    assert set(parse_ranges(group["kept"][0])) == set(range(WIDTH)) - set(dead.tolist())
    assert np.abs(run(module) - dense).max() <= 1e-12 * np.abs(dense).max()
    assert result.stats["silent-units"] == len(dead)


def test_activations_are_those_of_the_evaluator() -> None:
    module, samples = stack(layers=1), _samples(1)
    values = [value for node in module.graph.walk() for value in node.outputs if value.name == "a0"]
    (found,) = OrtActivations().activations(module, values, samples)
    whole = module.clone()
    (copy,) = [v for node in whole.graph.walk() for v in node.outputs if v.name == "a0"]
    whole.graph.set_outputs([("a", copy)])
    expected = evaluate(whole, samples[0])["a"]
    assert np.allclose(found[values[0]], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("criterion", ["taylor", "taylor-sum"])
def test_gradients_of_pytorch_score_as_differences_do(criterion: Any) -> None:
    pytest.importorskip("torch", reason="the gradients are PyTorch's")
    scores = []
    for source in (gradient_source(), Differences()):
        coupling = Coupling(stack(width=4, layers=1))
        ctx = Context(samples=_samples(), gradients=source)
        found = score(coupling, criterion, "mean", "none", 0, ctx)
        scores.append(np.concatenate([rows[0] for rows in found.values()]))
    # f32 gradients; differences are good to the square of their step
    assert np.allclose(scores[0], scores[1], rtol=1e-3, atol=1e-6 * np.abs(scores[1]).max())


def test_groups_that_no_product_reads_are_scored_all_the_same() -> None:
    module = stack(layers=1)
    coupling = Coupling(module)

    class Nothing:
        """Knows no values, as of bodies."""

        def activations(self, module: Any, values: Any, samples: Any) -> Iterator[Any]:
            """Yields nothing."""
            return iter(())

    found = score(
        coupling, "activation", "mean", "none", 0,
        Context(samples=_samples(), activations=Nothing()),
    )  # fmt: skip
    expected = score(coupling, "l2", "mean", "none", 0)
    assert found.keys() == expected.keys()
    for group, rows in expected.items():
        assert np.array_equal(found[group], rows)
