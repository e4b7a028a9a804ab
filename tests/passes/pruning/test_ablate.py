"""Ablation driven by the loss of a task."""

import itertools
from typing import Any

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import InputError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.attention.replace_softmax import ReplaceSoftmax
from regraft.passes.depth.stack import layers_of, without
from regraft.passes.protocol import Context
from regraft.passes.pruning.ablate import Ablate
from tests.passes.analysis.spelled import spelled
from tests.passes.depth.stacks import samples, stack
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


def _with_a_harmful_layer() -> tuple[Module, list[dict[str, Array]]]:
    """A stack whose second layer only disturbs what the others say, with labels without it."""
    module = stack(4, scale=0.3)
    clean = without(module, [1])
    given = [
        {**sample, "labels": evaluate(clean, sample, oracle=True)["y"].argmax(-1)}
        for sample in samples()
    ]
    return module, given


def test_whole_layers_that_are_not_missed_go_first() -> None:
    module, given = _with_a_harmful_layer()
    ctx = Context(samples=given, activations=OrtActivations())
    result = Ablate(parts=()).run(module, ctx)
    assert result.decisions["layers"] == [1]
    assert result.stats["dropped-layers"] == 1
    assert len(layers_of(module)) == 3
    trace = result.decisions["trace"]
    assert all(after <= before for before, after in itertools.pairwise(trace))
    again, _ = _with_a_harmful_layer()
    Ablate(parts=()).run(again, Context(replay={"ablate": result.decisions}))
    feeds = {"h0": given[0]["h0"]}
    np.testing.assert_array_equal(evaluate(again, feeds)["y"], evaluate(module, feeds)["y"])
    kept, _ = _with_a_harmful_layer()
    assert not Ablate(parts=(), layers=False).run(kept, ctx).changed


KEYS = 6


def _attention() -> Module:
    return spelled(
        """
        %q = matmul(%x, %wq)
        %k = matmul(%x, %wk)
        %a = attention(%q, %k, %x) {scale = 0.5}
        %b = attention(%a, %k, %x) {scale = 0.5}
        %s = reduce_mean(%b) {axes = [1, 2], keepdims = false}
        %y = matmul(%s, %head)
        """,
        f"B, 2, {KEYS}, 8",
        weights={"wq": "f32[8, 8]", "wk": "f32[8, 8]", "head": f"f32[8, {CLASSES}]"},
    )


def _attended(teacher: Module) -> Context:
    rng = np.random.default_rng(3)
    given = [{"x": rng.standard_normal((8, 2, KEYS, 8)).astype(np.float32)} for _ in range(4)]
    labels = [evaluate(teacher, sample, oracle=True)["y"].argmax(-1) for sample in given]
    labelled = [{**s, "labels": each} for s, each in zip(given, labels, strict=True)]
    return Context(samples=labelled, activations=OrtActivations())


def test_attention_to_as_many_keys_as_there_are_is_the_same() -> None:
    dense, module = _attention(), _attention()
    ctx = _attended(dense)
    result = Ablate(parts=(), top_keys=KEYS, tolerance=1e-6).run(module, ctx)
    assert result.decisions["attention"] == [0, 1]
    feeds = {"x": ctx.samples[0]["x"]}
    np.testing.assert_allclose(
        evaluate(module, feeds, oracle=True)["y"], evaluate(dense, feeds, oracle=True)["y"],
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_attention_looks_at_its_top_keys_where_that_does_no_harm() -> None:
    narrow = _attention()
    ReplaceSoftmax("top-k", layers=(1,), k=1).run(narrow, Context())
    # labels of a model whose second attention looks at one key
    module, ctx = _attention(), _attended(narrow)
    result = Ablate(parts=(), top_keys=1).run(module, ctx)
    assert 1 in result.decisions["attention"]
    trace = result.decisions["trace"]
    assert all(after <= before for before, after in itertools.pairwise(trace))
    again = _attention()
    Ablate(parts=(), top_keys=1).run(again, Context(replay={"ablate": result.decisions}))
    feeds = {"x": ctx.samples[0]["x"]}
    np.testing.assert_array_equal(evaluate(again, feeds)["y"], evaluate(module, feeds)["y"])


def test_labels_may_stand_beside_the_inputs_of_samples() -> None:
    module = _module()
    (record,) = regraft.apply(module, "ablate", samples=_samples(), check="off")
    assert record.stats["removals"] >= 1
    with pytest.raises(InputError, match="the model has no input `label`"):
        regraft.apply(
            _module(), "ablate", samples=[{**_samples()[0], "label": np.zeros(16)}], check="off"
        )
