"""A pruned output in terms of its source's checkpoint: names, positions, tensors both ways."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import regraft
from regraft.cli.main import main
from regraft.ir.evaluate import evaluate
from regraft.ir.safetensors import read_safetensors, write_safetensors
from regraft.ir.weights import ArrayWeight
from regraft.passes.pruning.plan import parse_ranges
from tests.passes.pruning.test_prune import stack

PASSES = "canonicalize,fuse,prune{target=params:0.5}"


def _write(path: Path, factor: float) -> dict[str, Any]:
    """Writes a model whose weights are multiples of those of `stack`; returns them."""
    module = stack(layers=2)
    for name in module.weights:
        array = module.weights[name].numpy() * np.float32(factor)
        module.weights.set(name, ArrayWeight(array))
    regraft.save(module, path, target="onnx")
    return {name: module.weights[name].numpy() for name in module.weights}


def _tensors(path: Path) -> dict[str, Any]:
    return {name: weight.numpy() for name, weight in read_safetensors(path).tensors.items()}


def _run(*args: Any) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    _write(tmp_path / "a.onnx", 1.0)
    regraft.convert(tmp_path / "a.onnx", tmp_path / "small", passes=PASSES)
    return tmp_path


def test_every_tensor_is_shown_with_its_kept_positions(
    pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert _run("checkpoint", pruned / "small", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    whole = stack(layers=2).weights
    assert set(rows) == set(whole)
    model = onnx.load(pruned / "small" / "model.onnx")
    small = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    for name, row in rows.items():
        array = whole[name].numpy()
        assert row["shape"] == list(array.shape)
        kept = [
            list(parse_ranges(row["kept"][str(axis)])) if str(axis) in row["kept"] else range(size)
            for axis, size in enumerate(array.shape)
        ]
        assert np.array_equal(array[np.ix_(*kept)], small[name])


def test_another_checkpoint_is_cut_alike_and_put_back(pruned: Path) -> None:
    other = _write(pruned / "b.onnx", 2.0)
    write_safetensors(
        pruned / "b.safetensors", {name: ArrayWeight(array) for name, array in other.items()}
    )
    small, cut = pruned / "small", pruned / "b-small.safetensors"
    assert _run("checkpoint", small, "--cut", pruned / "b.safetensors", "-o", cut) == 0
    tensors = _tensors(cut)
    model = onnx.load(small / "model.onnx")
    for item in model.graph.initializer:
        assert np.array_equal(tensors[item.name], 2 * onnx.numpy_helper.to_array(item))

    trained = {name: array + np.float32(1) for name, array in tensors.items()}
    write_safetensors(
        pruned / "t.safetensors", {name: ArrayWeight(array) for name, array in trained.items()}
    )
    back = pruned / "back.safetensors"
    restore = ("--restore", pruned / "t.safetensors", "--into", pruned / "b.safetensors")
    assert _run("checkpoint", small, *restore, "-o", back) == 0
    for name, array in _tensors(back).items():
        changed = array != other[name]
        assert changed.sum() == trained[name].size
        assert np.allclose(array[changed], other[name][changed] + 1)


def test_a_plan_is_taken_again_for_another_checkpoint(pruned: Path) -> None:
    _write(pruned / "b.onnx", 2.0)
    for plan in (pruned / "small", pruned / "small" / "recipe.yaml"):
        passes = f"canonicalize,fuse,prune{{plan={json.dumps(str(plan))}}}"
        second = regraft.convert(
            pruned / "b.onnx", pruned / f"second-{plan.name}", passes=passes
        ).module
        first = regraft.load(pruned / "small" / "model.onnx")
        for name in first.weights:
            assert np.array_equal(second.weights[name].numpy(), 2 * first.weights[name].numpy())
        x = {"x": np.random.default_rng(0).standard_normal((1, 2, 16)).astype(np.float32)}
        assert evaluate(second, x)["y"].shape == (1, 2, 4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--cut", "a", "--restore", "b", "--into", "c", "-o", "d"), "opposite ways"),
        (("--restore", "b", "-o", "d"), "belong together"),
        (("--cut", "b"), "-o FILE belongs"),
        (("-o", "b"), "-o FILE belongs"),
    ],
)
def test_flags_that_do_not_go_together(
    pruned: Path, args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("checkpoint", pruned / "small", *args) == 2
    assert said in capsys.readouterr().err


def test_tensors_of_another_shape_are_refused(
    pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"up0": ArrayWeight(np.zeros((3, 3), np.float32))}
    write_safetensors(pruned / "w.safetensors", wrong)
    out = pruned / "x.safetensors"
    assert _run("checkpoint", pruned / "small", "--cut", pruned / "w.safetensors", "-o", out) == 2
    assert "`up0` has shape [3, 3]" in capsys.readouterr().err
    assert not out.exists()


def test_an_output_that_was_not_pruned_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a.onnx", 1.0)
    regraft.convert(tmp_path / "a.onnx", tmp_path / "same", passes="canonicalize")
    assert _run("checkpoint", tmp_path / "same") == 2
    assert "was made without `prune`" in capsys.readouterr().err
