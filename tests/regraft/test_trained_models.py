"""The core set as users convert it: checked, made again byte for byte, and wrong passes found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import regraft
from benchmarks.models import CORE, ModelMissingError, RealModel, find, named
from regraft.bisection import bisect
from regraft.ir.text import read_module
from regraft.passes.cleanup import FoldNorms, affine_folds, fold_norms
from regraft.passes.cleanup.numbers import ZERO
from regraft.passes.fusion import Fuse, raise_activations
from regraft.pipelines import DEFAULT_PASSES, resolve_passes
from regraft.plugins import combine
from regraft.rerun import find_source, read_output, rerun

MAX_NODES = 10
"""A reproducer of more nodes shows no one what is wrong."""


def path_of(model: RealModel) -> Path:
    try:
        return find(model)
    except ModelMissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
@pytest.mark.parametrize("model", CORE, ids=lambda model: model.name)
def test_default_conversion_is_checked_and_made_again(
    model: RealModel, target: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = regraft.convert(path_of(model), out, target=target)
    assert [record.name for record in result.passes] == [*DEFAULT_PASSES.split(","), "legalize"]
    assert result.check.verified == "module"
    assert result.check.ok
    onnx.checker.check_model(out / "model.onnx", full_check=True)  # knows no com.microsoft
    recorded = read_output(out)
    outcome = rerun(recorded, find_source(recorded, None), combine(()))
    assert outcome.files == {"model.onnx": True}


@pytest.mark.parametrize("name", ["ppocr-cls", "silero_vad"])
def test_half_precision_needs_no_samples_of_the_user(name: str, tmp_path: Path) -> None:
    """Sizes that the runtime takes and the evaluator does not are no samples here."""
    result = regraft.convert(path_of(named(name)), tmp_path / "half.onnx", dtype="fp16")
    assert result.check.verified == "module"
    assert result.check.ok
    assert result.check.num_samples == 3


def wrong_gelu(monkeypatch: pytest.MonkeyPatch) -> str:
    """Plants the other GELU: it is off by 5e-4 at most."""
    right = raise_activations._raised

    def planted(activation: Any) -> Any:
        if activation.function.op.name == "gelu":
            function = dataclasses.replace(activation.function, attrs=(("tanh", True),))
            activation = dataclasses.replace(activation, function=function)
        return right(activation)

    monkeypatch.setattr(raise_activations, "_raised", planted)
    return "raise-gelu"


def wrong_fold(monkeypatch: pytest.MonkeyPatch) -> str:
    """Plants folds that forget the shift."""
    right = affine_folds.fold_into

    def planted(producer: Any, affine: Any) -> Any:
        return right(producer, dataclasses.replace(affine, shift=ZERO))

    monkeypatch.setattr(fold_norms, "fold_into", planted)
    return "fold-into-producer"


@pytest.mark.parametrize(
    ("name", "plant", "culprit"),
    [("minilm-l3", wrong_gelu, Fuse), ("ppocr-cls", wrong_fold, FoldNorms)],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
def test_planted_bug_is_found_with_a_small_reproducer(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], str],
    culprit: type[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = regraft.load(path_of(named(name)))
    passes = resolve_passes(None)
    rule = plant(monkeypatch)
    finding = bisect(module, passes, folder=tmp_path / "found")
    assert finding.pass_text == culprit.name
    assert finding.rule == rule
    assert finding.num_nodes is not None
    assert 1 <= finding.num_nodes <= MAX_NODES
    # it fails by itself, and only for the bug
    assert finding.reproducer is not None
    small = read_module(finding.reproducer / "module.rg")
    assert bisect(small, [culprit()], folder=tmp_path / "again").rule == rule
    monkeypatch.undo()
    assert bisect(small, [culprit()], folder=tmp_path / "fixed").pass_text is None
