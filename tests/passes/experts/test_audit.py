"""Figures of experts: planted loads, copies, norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import regraft
from benchmarks.fixtures import store
from regraft.auditing_experts import audit_experts
from regraft.backends.onnx.activations import OrtActivations
from regraft.cli.audit_cmd import command
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.audit import ExpertFigures, expert_figures
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context
from tests.passes.experts.test_upcycle_ffn import block

SAMPLES = [
    {"x": np.random.default_rng(seed).standard_normal((2, 40, 16)).astype(np.float32)}
    for seed in range(4)
]


def _upcycled(**options: Any) -> Module:
    module = block("swiglu")
    defaults = {"experts": 4, "top_k": 1, "method": "drop", "router_std": 1.0, "lossy": True}
    UpcycleFfn(**(defaults | options)).run(module, Context())
    return module


def _figures(module: Module) -> ExpertFigures:
    (found,), skipped = expert_figures(module, SAMPLES, OrtActivations())
    assert not skipped
    return found


def _set(module: Module, ending: str, change: Any) -> None:
    (name,) = (name for name in module.weights if name.endswith(ending))
    module.weights.set(name, ArrayWeight(change(module.weights[name].numpy().copy())))


def test_loads_are_those_of_the_router() -> None:
    module = _upcycled()
    found = _figures(module)
    router = next(module.weights[n].numpy() for n in module.weights if n.endswith("router"))
    rows = np.concatenate([each["x"].reshape(-1, 16) for each in SAMPLES])
    chosen = (rows @ router).argmax(-1)
    want = np.bincount(chosen, minlength=4) / len(rows)
    np.testing.assert_allclose(found.load, want)
    assert found.tokens == len(rows)
    assert found.worst_load == pytest.approx(want.max() * 4)
    assert found.chosen == pytest.approx(1)
    entropy = -(want[want > 0] * np.log(want[want > 0])).sum() / np.log(4)
    assert found.load_entropy == pytest.approx(entropy)


def test_a_router_of_zeros_has_the_entropy_of_even_scores_and_one_expert() -> None:
    found = _figures(_upcycled(router="zero", renormalize=False))
    assert found.router_entropy == pytest.approx(1)
    assert found.load == (1, 0, 0, 0)
    assert found.unused == 3
    assert found.load_entropy == pytest.approx(0)


def test_a_copied_expert_shows_a_cosine_of_one() -> None:
    module = _upcycled()
    assert _figures(module).weight_cosine < 0.9
    for part in ("up", "gate", "down"):
        _set(module, f"experts.{part}", lambda array: np.stack([array[0], *array[:3]]))
    found = _figures(module)
    assert found.weight_cosine == pytest.approx(1)
    assert found.output_cosine == pytest.approx(1)


def test_planted_norms_are_found() -> None:
    module = _upcycled(method="copy")
    scale = np.array([1, 2, 4, 8], np.float32)
    _set(module, "experts.down", lambda array: array * scale[:, None, None])
    _set(module, "experts.down_bias", lambda array: array * scale[:, None])
    norms = np.array(_figures(module).norms)
    np.testing.assert_allclose(norms / norms[0], scale, rtol=1e-5)


def test_active_flops_follow_what_is_chosen() -> None:
    module = block("swiglu")
    PartitionFfn(experts=5, top_k=2, sizes="rising", method="random", router="random").run(
        module, Context()
    )
    found = _figures(module)
    assert sum(found.widths) == 64
    mean = sum(load * width for load, width in zip(found.load, found.widths, strict=True))
    assert found.flops == pytest.approx(mean * 2 * 3 * 16)
    assert found.whole_flops == 64 * 2 * 3 * 16
    assert found.chosen == pytest.approx(2)


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(UsageError, match="no layer of experts"):
        audit_experts(block("swiglu"), SAMPLES)
    with pytest.raises(UsageError, match="no data"):
        audit_experts(_upcycled(), [])


def test_the_command_shows_experts(tmp_path: Path) -> None:
    module = regraft.load(store.load("opt.dyn18"))
    regraft.apply(module, "canonicalize,fuse,upcycle-ffn{experts=4,method=drop}", check="off")
    regraft.save(module, tmp_path / "moe.onnx")
    np.savez(tmp_path / "texts.npz", **store.samples("opt.dyn18"))
    args = [str(tmp_path / "moe.onnx"), "--inputs", str(tmp_path / "texts.npz")]
    table = CliRunner().invoke(command, args, catch_exceptions=False)
    assert table.exit_code == 0
    assert "active: 50.0 %" in table.output
    as_json = CliRunner().invoke(command, [*args, "--json"], catch_exceptions=False)
    report = json.loads(as_json.output)
    assert len(report["experts"]) == 2
    assert all(layer["experts"] == 4 for layer in report["experts"])
