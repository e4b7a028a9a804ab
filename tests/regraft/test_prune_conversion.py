"""`convert` with `prune`: the written model, the report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.ir.errors import TargetError
from regraft.ir.evaluate import evaluate

FAMILIES = ("bert.ts17", "llama.ts17", "timm_levit.ts17", "convnext.dyn18")


@pytest.fixture(params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    path = tmp_path / "model.onnx"
    onnx.save(store.load(request.param), path)
    return request.param, path


def test_the_written_model_is_the_pruned_module(source: tuple[str, Path], tmp_path: Path) -> None:
    name, path = source
    result = regraft.convert(
        path, tmp_path / "out", passes="canonicalize,fuse,prune{target=flops:0.5}"
    )
    module = regraft.load(path)
    regraft.apply(module, "canonicalize,fuse,prune{target=flops:0.5}")
    inputs = store.samples(name)
    session = ort.InferenceSession(
        tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    actual = dict(zip(names, session.run(names, inputs), strict=True))
    for output, expected in evaluate(module, inputs).items():
        # two runtimes in f32, some tens of operators deep
        scale = 1e-4 * np.abs(expected).max()
        assert np.allclose(actual[output], expected, rtol=0, atol=scale)
    (target,) = result.report["targets"]
    assert target["name"] == "flops"
    assert target["requested"] == 0.5
    assert target["met"]
    assert target["achieved"] == pytest.approx(0.5, rel=0.01)


def test_a_rerun_takes_the_recorded_plan(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(store.load("bert.ts17"), path)
    regraft.convert(path, tmp_path / "out", passes="prune{target=flops:0.5,criterion=random}")
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "plan" in recipe
    assert "kept" in recipe


def test_a_target_out_of_reach_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(store.load("bert.ts17"), path)
    with pytest.raises(TargetError, match="is nearest"):
        regraft.convert(path, tmp_path / "out", passes="prune{target=flops:0.001}")
    assert not (tmp_path / "out").exists()


def test_report_is_json(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(store.load("bert.ts17"), path)
    regraft.convert(path, tmp_path / "out", passes="prune{target=params:0.7}")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["targets"][0]["name"] == "params"
    assert any("every position depends" in s["reason"] for s in report["passes"][0]["skipped"])
