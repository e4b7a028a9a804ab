"""`convert --dtype`: half the bytes, or exit 3 with the value at which numbers part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cli.snapshot import run


def save_model(path: Path, scale: float) -> None:
    """Writes tanh(relu(x @ w) * scale) @ v."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((64, 256)).astype(np.float32),
        "v": rng.standard_normal((256, 64)).astype(np.float32),
        "s": np.asarray(scale, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Mul", ["r", "s"], ["m"]),
        helper.make_node("Mul", ["m", "s"], ["big"]),
        helper.make_node("Tanh", ["big"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["B", 64])],
        [value("y", TensorProto.FLOAT, ["B", 64])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def test_half_the_bytes_within_the_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m.onnx", 0.1)
    argv = ["convert", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out"), "--dtype", "fp16"]
    code, out, err = run([*argv, "--json"], capsys)
    assert code == 0, err
    report = json.loads(out)
    assert report["check"]["ok"]
    assert report["bytes"]["after"] < 0.52 * report["bytes"]["before"]


def test_range_check_keeps_what_overflows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m.onnx", 300.0)
    argv = ["convert", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out"), "--dtype", "fp16"]
    code, out, err = run([*argv, "--json"], capsys)
    assert code == 0, err
    (entry,) = [p for p in json.loads(out)["passes"] if p["name"] == "cast"]
    assert any("`%big` reaches" in skip["reason"] for skip in entry["skipped"])


def test_overflow_that_reaches_an_output_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "symbol B\ngraph(%x : f32[B, 8]) {\n%s = literal f32[] 3e4\n%m = mul(%x, %s)\n"
        "%a = abs(%m)\n%r = sqrt(%a)\n%y = neg(%r)\nreturn %y\n}\n"
    )
    (tmp_path / "m.rg").write_text(text)
    argv = ["convert", str(tmp_path / "m.rg"), "-o", str(tmp_path / "out.onnx"), "--passes"]
    code, _, err = run([*argv, "cast{dtype=fp16,range-check=false}"], capsys)
    assert code == 3
    assert "output `y`" in err
    assert "the first value that is off is `%m` (mul)" in err
    assert not (tmp_path / "out.onnx").exists()
    code, _, err = run([*argv, "cast{dtype=fp16}"], capsys)
    assert code == 0, err


def test_bf16_is_refused_for_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m.onnx", 0.1)
    argv = ["convert", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out"), "--dtype", "bf16"]
    code, _, err = run(argv, capsys)
    assert code == 1
    assert "no bf16 kernels" in err
    assert run([*argv, "--target", "onnx"], capsys)[0] == 0


def test_dtype_beside_cast_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m.onnx", 0.1)
    code, _, err = run(
        ["convert", str(tmp_path / "m.onnx"), "--dry-run", "--dtype", "fp16", "--passes",
         "cast{dtype=fp16}"],
        capsys,
    )  # fmt: skip
    assert code == 2
    assert "give one" in err
