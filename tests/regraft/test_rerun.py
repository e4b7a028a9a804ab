"""`rerun`: the same files again, byte for byte, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import regraft
from regraft.ir.errors import InputError, UsageError
from regraft.passes.recovery.fixed import FixedBatches
from tests.cli.snapshot import run
from tests.cli.workplace import populate

CONVERT = ["convert", "model.onnx", "-o", "out", "-q"]
FORGET = ["--passes", "canonicalize,forget", "--plugin", "plugin.py:PLUGIN"]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    populate(tmp_path)
    monkeypatch.chdir(tmp_path)


def made(capsys: pytest.CaptureFixture[str], *flags: str) -> None:
    code, _, err = run([*CONVERT, *flags], capsys)
    assert code == 0, err


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--target", "onnx", "--opset", "20", "--freeze", "batch=2"],
        ["--dtype", "fp16", "--inputs", "samples"],
        ["--passes", "canonicalize{max-fold-bytes=8}"],
        ["--seed", "7", "--no-check"],
    ],
    ids=" ".join,
)
def test_files_come_out_the_same(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys, *flags)
    code, out, err = run(["rerun", "out", "--json"], capsys)
    assert code == 0, err
    assert json.loads(out)["files"] == {"model.onnx": True}


def test_decisions_are_replayed_without_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # on these samples the product leaves the range of f16: the node stays in f32
    large = np.full((1, 4), 6e4, np.float32)
    np.savez(tmp_path / "large.npz", x=large)
    made(capsys, "--dtype", "fp16", "--inputs", "large.npz")
    assert "kept:" in (tmp_path / "out" / "recipe.yaml").read_text()
    code, out, _ = run(["rerun", "out", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["identical"]


def test_samples_of_a_file_are_read_in_python_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.full((1, 4), 6e4, np.float32))
    regraft.convert("model.onnx", "read", dtype="fp16", inputs="large.npz")
    recipe = (tmp_path / "read" / "recipe.yaml").read_text()
    assert "kept:" in recipe  # they were run
    assert "inputs:" in recipe
    with pytest.raises(UsageError, match="not both"):
        regraft.convert(
            "model.onnx", "both", inputs="large.npz", samples=[{"x": np.zeros((1, 4), np.float32)}]
        )
    with pytest.raises(InputError, match="does not exist"):
        regraft.convert("model.onnx", "absent", inputs="absent.npz")


def test_other_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys)
    made_again = (tmp_path / "other.onnx").read_bytes()
    (tmp_path / "out" / "model.onnx").write_bytes(made_again)
    code, out, _ = run(["rerun", "out"], capsys)
    assert code == 3
    assert "different" in out
    assert "out of tolerance" in out
    assert (tmp_path / "out" / "model.onnx").read_bytes() == made_again


def test_other_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys)
    code, _, err = run(["rerun", "out", "--source", "other.onnx"], capsys)
    assert code == 2
    assert "is not the file that the output was made from" in err
    (tmp_path / "model.onnx").rename(tmp_path / "moved.onnx")
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "give its place with --source" in err
    assert run(["rerun", "out", "--source", "moved.onnx"], capsys)[0] == 0


def test_plugins_run_only_when_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys, *FORGET)
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "--allow-plugins" in err
    assert run(["rerun", "out", "--allow-plugins"], capsys)[0] == 0
    plugin = tmp_path / "plugin.py"
    plugin.write_text(plugin.read_text() + "# changed\n")
    code, _, err = run(["rerun", "out", "--allow-plugins"], capsys)
    assert code == 2
    assert "has changed since" in err
    assert run(["rerun", "out", "--plugin", "plugin.py:PLUGIN"], capsys)[0] == 0


def test_folder_without_records_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["rerun", "exists"], capsys)
    assert code == 2
    assert "is no output folder" in err


RECOVER = "canonicalize,drop-layers{layers=[2]},recover{steps=4,warmup=0.25,ridge=1}"


def _train(folder: Path, name: str = "train.npz", seed: int = 0) -> None:
    x = np.random.default_rng(seed).standard_normal((16, 6, 8)).astype(np.float32)
    np.savez(folder / name, x=x, attention_mask=np.ones((16, 6), np.float32))


@pytest.fixture
def stack(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="recovery trains with PyTorch")
    from tests.backends.torch.training.test_recover import stack as made_stack

    regraft.save(made_stack(), tmp_path / "model.onnx", force=True)


@pytest.mark.usefixtures("stack")
def test_training_is_replayed_on_the_recorded_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(tmp_path)
    made(capsys, "--passes", RECOVER, "--train", "train.npz")
    code, out, err = run(["rerun", "out", "--json"], capsys)
    assert code == 0, err
    assert json.loads(out)["files"]["model.onnx"] is True
    (tmp_path / "train.npz").rename(tmp_path / "moved.npz")
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "`train.npz` does not exist" in err
    assert "give its place with --train" in err
    assert run(["rerun", "out", "--train", "moved.npz"], capsys)[0] == 0
    _train(tmp_path, seed=1)
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "`train.npz` is other data: its hash differs" in err


@pytest.mark.usefixtures("stack")
def test_training_on_calibration_data_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    for seed in range(2):
        _train(tmp_path / "rows", f"{seed}.npz", seed)
    made(capsys, "--passes", RECOVER, "--calibrate", "rows")
    assert run(["rerun", "out"], capsys)[0] == 0
    _train(tmp_path / "rows", "2.npz", seed=2)
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "`rows` is other data" in err


@pytest.mark.usefixtures("stack")
def test_training_on_data_without_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(tmp_path)
    with np.load(tmp_path / "train.npz") as arrays:
        batches = FixedBatches([dict(arrays)])
    regraft.convert("model.onnx", "out", passes=RECOVER, train=batches)
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "the pass `recover` trained on data of which no file is recorded" in err
    code, _, err = run(["rerun", "out", "--train", "train.npz"], capsys)
    assert code == 2


def test_data_that_decisions_stand_for_may_be_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "large.npz", x=np.full((1, 4), 6e4, np.float32))
    made(capsys, "--dtype", "fp16", "--calibrate", "large.npz")
    (tmp_path / "large.npz").unlink()
    assert run(["rerun", "out"], capsys)[0] == 0
    code, _, err = run(["rerun", "out", "--train", "samples"], capsys)
    assert code == 2
    assert "`--train`: the output was made without" in err


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
def test_a_folder_of_transformers_comes_out_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="models are built with PyTorch")
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    from benchmarks.fixtures import hf_families

    hf_families.save("llama", tmp_path / "llama")
    for source, flags in (("llama", ["--target", "hf"]), ("llama#decode", [])):
        code, _, err = run(["convert", source, "-o", "out", "-q", "--force", *flags], capsys)
        assert code == 0, err
        code, out, err = run(["rerun", "out", "--json"], capsys)
        assert code == 0, err
        assert json.loads(out)["identical"]
    hf_families.save("mistral", tmp_path / "llama")
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "is not the folder that the output was made from" in err


def two_layers() -> onnx.ModelProto:
    """Returns a perceptron of 32 hidden neurons."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 32)), "b": rng.normal(size=32), "v": rng.normal(size=(32, 4)),
    }  # fmt: skip
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
        onnx.helper.make_node("Add", ["h", "b"], ["c"]),
        onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "perceptron",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(w.astype(np.float32), k) for k, w in weights.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    "passes",
    ["canonicalize,quantize", "canonicalize,prune{target=flops:0.75},prune{target=flops:0.75}"],
)
@pytest.mark.parametrize("checks", [[], ["--no-check"]], ids=["checked", "unchecked"])
def test_what_passes_found_on_data_comes_out_the_same(
    passes: str, checks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(two_layers(), tmp_path / "model.onnx")
    made(capsys, "--passes", passes, *checks)
    code, out, err = run(["rerun", "out", "--json"], capsys)
    assert code == 0, err
    assert json.loads(out)["identical"]


def test_lossy_passes_need_their_data_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(capsys, "--passes", "canonicalize,quantize", "--inputs", "samples")
    code, _, err = run(["rerun", "out", "--json"], capsys)
    assert code == 0, err
    (tmp_path / "samples").rename(tmp_path / "moved")
    code, _, err = run(["rerun", "out"], capsys)
    assert code == 2
    assert "--inputs" in err
    assert run(["rerun", "out", "--inputs", "moved"], capsys)[0] == 0
