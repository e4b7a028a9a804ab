"""The audit: figures of layers, ablations, the copy probe, and what the verdict rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from regraft.auditing import audit_module
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.linearization.audit import Ablation, ablated, layer_figures, mixers
from regraft.passes.linearization.probe import Probe
from regraft.passes.linearization.verdict import Verdict, judge
from tests.passes.linearization.language_model import HEADS as H
from tests.passes.linearization.language_model import SIZE as D
from tests.passes.linearization.language_model import VOCABULARY as V
from tests.passes.linearization.language_model import language_model

B, T = 2, 24
RNG = np.random.default_rng(2)


def _linear(module: Module, options: str) -> Module:
    made = module.clone()
    regraft.apply(made, f"linearize-attention{{{options}}}", check="off")
    return made


def _batches() -> list[dict[str, Any]]:
    return [{"input_ids": RNG.integers(0, V, (B, T))}]


def _runner(module: Module) -> OrtRunner:
    return OrtRunner(to_proto(module))


def test_a_window_over_everything_has_the_weights_of_softmax() -> None:
    module = language_model()
    (layer,) = layer_figures(module, _linear(module, f"window={T}"), _batches(), _runner)
    assert layer.kind == "hybrid"
    np.testing.assert_allclose(layer.kl, 0, atol=1e-5)
    assert layer.error < 1e-9
    assert layer.spikiness == pytest.approx(layer.teacher_spikiness, abs=1e-5)
    np.testing.assert_allclose(layer.monotonicity, 1, atol=0.01)  # equal tokens tie


@pytest.mark.parametrize("options", ["method=hedgehog", "window=4", "window=4,merge=lolcats"])
def test_the_weights_are_those_that_the_model_computes(options: str) -> None:
    """KL of a model from itself is 0, and from what it was made of it is not."""
    module = language_model()
    made = _linear(module, options)
    (own,) = layer_figures(made, made, _batches(), _runner)
    np.testing.assert_allclose(own.kl, 0, atol=1e-6)
    (layer,) = layer_figures(module, made, _batches(), _runner)
    assert min(layer.kl) > 1e-3
    assert layer.state_bytes is not None
    assert layer.kv_bytes_per_token == 4 * H * 2 * D


def test_ablations_of_a_module_leave_it_alone() -> None:
    made, (batch,) = _linear(language_model(), "window=4"), _batches()
    before = evaluate(made, batch)["logits"]
    parts = {each: evaluate(ablated(made, each), batch)["logits"] for each in Ablation}
    np.testing.assert_array_equal(parts[Ablation.BOTH], before)
    assert not parts[Ablation.NONE].any()
    assert np.abs(parts[Ablation.WINDOW] - before).max() > 1e-2
    assert np.abs(parts[Ablation.LINEAR] - before).max() > 1e-2
    np.testing.assert_array_equal(evaluate(made, batch)["logits"], before)


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ((1.400, 1.408, 4.48, 4.6), Verdict.WINDOW),
        ((1.4, 2.0, 3.0, 4.6), Verdict.HYBRID),
        ((1.4, 3.0, 1.41, 4.6), Verdict.NO_WINDOW),
        ((1.4, 1.4, 1.4, 1.3), Verdict.IDLE),
    ],
)
def test_the_verdict_is_what_is_lost(losses: tuple[float, ...], verdict: Verdict) -> None:
    assert judge(dict(zip(Ablation, losses, strict=True))).verdict is verdict
    accuracies = {each: 5 - loss for each, loss in zip(Ablation, losses, strict=True)}
    assert judge(accuracies, more_is_better=True).verdict is verdict


def test_the_probe_is_passed_by_a_model_that_looks_back_one_period() -> None:
    probe = Probe(20, 30, first=2)

    def looks_back(batch: Any) -> dict[str, Any]:
        ids = batch["input_ids"]
        after = np.roll(ids, -1, axis=1)
        after[:, 20:] = after[:, :-20]  # what followed one period ago
        return {"logits": np.eye(30)[after]}

    def guesses(batch: Any) -> dict[str, Any]:
        return {"logits": np.random.default_rng(0).random((*batch["input_ids"].shape, 30))}

    assert probe.accuracy(looks_back) == 1
    assert probe.accuracy(guesses) == pytest.approx(probe.chance, abs=0.03)


def test_the_document_has_a_verdict_and_the_sizes_of_states() -> None:
    module = language_model()
    report = audit_module(_linear(module, "window=4"), module, _batches())
    assert report["measure"] == "nats per token"
    assert set(report["ablations"]) == {"both", "window", "linear", "none"}
    assert report["probe"]["period"] == 20
    assert report["state_bytes"] == 4 * (H * 2 * D * (D + 1) + H * 4 * (D + 2 * D + D + 1))
    plain = audit_module(_linear(module, "window=0"), module, _batches())
    assert plain["verdict"] == "linear"
    assert len(mixers(module)) == 1


def test_an_audit_needs_data() -> None:
    module = language_model()
    with pytest.raises(UsageError, match="there is no data"):
        audit_module(module, module, [])
