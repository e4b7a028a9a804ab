"""`allocation=measured`: groups that matter keep more, measured once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from tests.passes.pruning.test_prune import WIDTH, run, stack


def _context() -> Context:
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((2, 3, 16)).astype(np.float32)}]
    return Context(samples=samples, activations=OrtActivations())


def _uneven() -> Module:
    """Layers of which the second has little to say."""
    module = stack()
    module.weights.set("down1", ArrayWeight(module.weights["down1"].numpy() * np.float32(1e-4)))
    return module


def test_layers_that_matter_keep_more_and_less_is_lost(tmp_path: Path) -> None:
    dense = run(_uneven())
    errors = {}
    for allocation in ("uniform", "measured"):
        module = _uneven()
        item = Prune(
            "params:0.7", criterion="l2", allocation=allocation,  # type: ignore[arg-type]
            keep=("first", "last"), curves=str(tmp_path / "curves.jsonl"), min_keep=0.1,
        )  # fmt: skip
        result = item.run(module, _context())
        assert result.stats["achieved"] == pytest.approx(0.7, rel=0.01)
        errors[allocation] = float(np.square(run(module) - dense).sum())
        if allocation == "measured":
            widths = [module.weights[f"up{i}"].shape[1] for i in range(3)]
            assert widths[1] < min(widths[0], widths[2])
            assert result.stats["measured-losses"] >= 9
            assert result.stats["additivity-r2"] <= 1
            sensitivity, frontier = result.plots
            lines = {line.name.split(": ")[1]: line for line in sensitivity.lines}
            assert sensitivity.lines[-1] is lines["up1"]  # what loses least comes last
            assert lines["up1"].chosen is not None
            assert lines["up0"].chosen is not None
            assert lines["up1"].chosen[0] < lines["up0"].chosen[0]
            solver, _ = frontier.lines
            assert solver.chosen is not None
            assert solver.chosen[0] == pytest.approx(result.stats["achieved"], rel=0.05)
        else:
            assert result.plots == ()
    assert errors["measured"] < 0.5 * errors["uniform"]


def test_another_target_measures_nothing_again(tmp_path: Path) -> None:
    counts = []
    for target in ("params:0.8", "params:0.7"):
        item = Prune(
            target, criterion="l2", allocation="measured", curves=str(tmp_path / "c.jsonl")
        )
        counts.append(item.run(_uneven(), _context()).stats["measured-losses"])
    assert counts[0] > 0
    assert counts[1] == 0


def test_other_weights_are_measured_again(tmp_path: Path) -> None:
    def measured(module: Module) -> Any:
        item = Prune(
            "params:0.7", criterion="l2", allocation="measured", curves=str(tmp_path / "c.jsonl")
        )
        return item.run(module, _context()).stats["measured-losses"]

    assert measured(stack()) == measured(_uneven()) > 0


def test_layers_of_heavier_tails_keep_more() -> None:
    module = stack()
    rng = np.random.default_rng(0)
    for name in ("up1", "down1"):  # a few directions carry nearly all
        shape = module.weights[name].shape
        left, _, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        values = np.arange(1, 33) ** -1.5 * 50
        module.weights.set(name, ArrayWeight(((left * values) @ right).astype(np.float32)))
    item = Prune("params:0.7", allocation="spectral", keep=("first", "last"), min_keep=0.1)
    result = item.run(module, Context())
    assert result.stats["achieved"] == pytest.approx(0.7, rel=0.01)
    widths = [module.weights[f"up{i}"].shape[1] for i in range(3)]
    assert widths[1] > 1.2 * max(widths[0], widths[2])


def test_it_says_what_it_lacks() -> None:
    with pytest.raises(UsageError, match="nothing here runs"):
        Prune("params:0.7", allocation="measured").run(stack(width=WIDTH), Context())
