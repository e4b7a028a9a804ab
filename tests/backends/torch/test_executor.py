"""Runs for passes: outputs, values inside, gradients by weight."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.weights import ArrayWeight
from tests.backends.torch.models import (
    assert_close,
    assert_same_outputs,
    layer_inputs,
    layers,
    torch,
)

from regraft.backends.torch.executor import (  # isort: skip  # needs torch
    TorchExecutor,
    TorchGradients,
)


def test_outputs_of_several_samples() -> None:
    module = layers()
    samples = [layer_inputs(1), layer_inputs(3)]
    for got, inputs in zip(TorchExecutor().run(module, samples), samples, strict=True):
        assert_same_outputs(module, got, inputs)


def test_activations_are_those_of_the_evaluator() -> None:
    module = layers()
    values = [node.output for node in module.graph if node.op.name in ("relu", "add", "matmul")]
    inputs = layer_inputs()
    seen: dict[object, np.ndarray] = {}

    def note(value: object, array: np.ndarray) -> None:
        seen[value] = array

    evaluate(module, inputs, observe=note)
    (got,) = TorchExecutor().activations(module, values, [inputs])
    assert list(got) == values
    for value in values:
        assert_close(got[value], seen[value])


def test_activations_leave_the_module_as_it_is() -> None:
    module = layers()
    before = str(module)
    (value,) = (node.output for node in module.graph if node.output.name == "r0")
    list(TorchExecutor().activations(module, [value], [layer_inputs()]))
    assert str(module) == before


@pytest.mark.parametrize("passes", ["", "canonicalize"])
def test_gradients_match_finite_differences(passes: str) -> None:
    module = layers()
    if passes:
        regraft.apply(module, passes, check="off")
    inputs = layer_inputs(seed=4)
    (grads,) = TorchGradients().gradients(module, [inputs])
    names = [name for name in module.weights if name in grads]
    assert len(names) == 8
    rng = np.random.default_rng(0)
    for name in names:
        array = module.weights[name].numpy()
        direction = rng.standard_normal(array.shape)
        step = 1e-3
        losses = []
        for sign in (1, -1):
            moved = module.clone()
            shifted = array + (sign * step * direction).astype(np.float32)
            moved.weights.set(name, ArrayWeight(shifted))
            out = evaluate(moved, inputs, oracle=True)["out"]
            losses.append(np.square(out.astype(np.float64)).mean() / 2)
        slope = (losses[0] - losses[1]) / (2 * step)
        # the third derivative leaves step², f32 gradients some hundred roundings
        assert float((grads[name] * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_loss_of_ones_own_reads_labels_from_the_sample() -> None:
    def loss(outputs: dict, sample: dict) -> torch.Tensor:
        return (outputs["out"] - sample["label"]).square().sum()

    inputs = {**layer_inputs(), "label": np.zeros((6, 2, 4), np.float32)}
    source = TorchGradients(loss)
    (grads,) = source.gradients(layers(), [inputs], ["head.bias"])
    out = TorchExecutor().run(layers(), [inputs])[0]["out"]
    np.testing.assert_allclose(grads["head.bias"], 2 * out.reshape(6, 8).sum(0), rtol=1e-4)


def test_unknown_weight_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"`head.wait`"):
        list(TorchGradients().gradients(layers(), [layer_inputs()], ["head.wait"]))
