"""Gates and thresholds that are learned, and gates carried from one task to another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from regraft.backends.onnx.activations import OrtActivations
from regraft.calibration import gradient_source
from regraft.ir.errors import InputError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.cost import cost_model
from regraft.passes.pruning.criteria import score
from regraft.passes.pruning.gates import Learning, kept_above, learn_thresholds
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.masked import run_masked

Array = np.ndarray[Any, Any]

UNITS = 40
STEPS = 15


def _module() -> Module:
    return spelled(
        "%h = matmul(%x, %up)\n%a = relu(%h)\n%y = matmul(%a, %down)",
        weights={"up": f"f32[16, {UNITS}]", "down": f"f32[{UNITS}, 6]"},
    )


def _task(axes: slice, count: int, seed: int) -> list[dict[str, Array]]:
    """Returns inputs that live on some of the axes: each task needs other units."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        x = 0.05 * rng.standard_normal((1, 2, 16))
        x[..., axes] = rng.standard_normal((1, 2, x[..., axes].shape[-1]))
        samples.append({"x": x.astype(np.float32)})
    return samples


def _context(samples: list[dict[str, Array]]) -> Context:
    return Context(samples=samples, activations=OrtActivations(), gradients=gradient_source())


def _error(module: Module, samples: list[dict[str, Array]]) -> float:
    dense, lost, whole = _module(), 0.0, 0.0
    for sample in samples:
        y = evaluate(dense, sample, oracle=True)["y"]
        lost += float(np.square(evaluate(module, sample, oracle=True)["y"] - y).sum())
        whole += float(np.square(y).sum())
    return lost / whole


TASK_A, TASK_B = slice(0, 10), slice(4, 12)


def test_gates_of_a_larger_task_help_a_small_one(tmp_path: Path) -> None:
    both = [*_task(TASK_A, 24, 1), *_task(TASK_B, 24, 2)]
    few = _task(TASK_B, 3, 3)
    held_out = _task(TASK_B, 60, 4)
    gates = str(tmp_path / "gates.json")
    learn = Prune("flops:0.6", criterion="gates", steps=STEPS, repair="none")
    learn_and_keep = Prune("flops:0.6", criterion="gates", steps=STEPS, repair="none", gates=gates)
    learn_and_keep.run(_module(), _context(both))
    transferred, alone = _module(), _module()
    result = learn_and_keep.run(transferred, _context(few))
    learn.run(alone, _context(few))
    assert result.stats["achieved"] == pytest.approx(0.6, rel=0.01)
    assert _error(transferred, held_out) <= _error(alone, held_out)


def test_gates_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text("[]")
    prune = Prune("flops:0.5", criterion="gates", gates=str(path), steps=1)
    with pytest.raises(InputError, match="has no gates for group `g0`"):
        prune.run(_module(), _context(_task(TASK_A, 2, 1)))


def test_thresholds_meet_the_budget_and_the_sliced_module_costs_what_they_say() -> None:
    module, ctx = _module(), _context(_task(TASK_A, 6, 1))
    coupling = Coupling(module)
    cost = cost_model(coupling, "flops", {"B": 1, "S": 128})
    (group,) = coupling.groups
    budget = 0.5 * cost.total(np.array([group.size]))
    scores = score(coupling, "wanda", "mean", "mean", 0, ctx)
    thresholds = learn_thresholds(coupling, ctx, Learning(cost, budget, 40), scores)
    kept = kept_above(scores, thresholds)
    predicted = cost.total(np.array([kept[group]]))
    assert predicted < cost.total(np.array([group.size]))
    assert predicted == pytest.approx(budget, rel=0.25)  # before sizes are settled
    result = Prune(
        "flops:0.5", criterion="wanda", allocation="learned", steps=40, repair="none"
    ).run(module, ctx)
    assert result.stats["achieved"] == pytest.approx(0.5, rel=0.02)
    after = Coupling(module)
    again = cost_model(after, "flops", {"B": 1, "S": 128})
    sizes = np.array([item.size for item in after.groups])
    assert again.total(sizes) == result.stats["flops-after"]
    feeds = {"x": ctx.samples[0]["x"]}
    masked = run_masked(Coupling(_module()), result.decisions["plan"], feeds)
    for name, array in evaluate(module, feeds, oracle=True).items():
        np.testing.assert_allclose(array, masked[name], rtol=0, atol=1e-5)


def test_learning_needs_gradients() -> None:
    ctx = Context(samples=_task(TASK_A, 2, 1), activations=OrtActivations())
    with pytest.raises(UsageError, match="learned by gradients"):
        Prune("flops:0.5", criterion="gates").run(_module(), ctx)
