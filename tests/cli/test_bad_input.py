"""Bad input at the command line: exit code 2, one error and a hint, nothing written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.snapshot import run
from tests.robustness.bad_models import BAD_MODELS, BadModel
from tests.robustness.build import graph, info, linear, model, node, weight
from tests.robustness.odd_models import ODD_MODELS

CONVERT = ("convert", "m.onnx", "-o", "out")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str], says: str = "", code: int = 2
) -> None:
    before = listing(Path())
    found, stdout, stderr = run(argv, capsys)
    assert found == code, stderr
    assert stdout == ""
    lines = stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert "Traceback" not in stderr
    assert "\x1b" not in stderr
    assert re.search(says, stderr), stderr
    assert listing(Path()) == before


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD_MODELS, ids=lambda bad: bad.name)
def test_bad_model_is_one_error(
    bad: BadModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad.build(tmp_path)
    assert_refused(["convert", str(path), "-o", "out"], capsys, bad.says)


@pytest.mark.parametrize("verb", ["inspect", "lint"])
def test_path_that_no_file_can_have(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused([verb, "a" * 300], capsys, "cannot be read: File name too long")


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".onnx"])
def test_destination_that_no_file_can_have(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(linear().SerializeToString())
    assert_refused(["convert", "m.onnx", "-o", name], capsys, "cannot be written")


def test_destination_of_the_longest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(linear().SerializeToString())
    code, _, stderr = run(["convert", "m.onnx", "-o", "a" * 255], capsys)
    assert code == 0, stderr


VERBS = {
    "inspect": ["inspect", "bad.onnx"],
    "compare": ["compare", "bad.onnx", "m.onnx"],
    "compare-second": ["compare", "m.onnx", "bad.onnx"],
    "opt": ["opt", "bad.onnx"],
    "lint": ["lint", "bad.onnx"],
    "bench": ["bench", "bad.onnx"],
    "bisect": ["bisect", "bad.onnx"],
}


@pytest.mark.parametrize("argv", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("cut", [0, 100], ids=["empty", "truncated"])
def test_every_verb_refuses_bad_models(
    argv: list[str], cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = linear().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    (tmp_path / "bad.onnx").write_bytes(data[:cut])
    assert_refused(argv, capsys, r"bad\.onnx")


def test_refusal_is_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    code, stdout, _ = run([*CONVERT, "--json"], capsys)
    assert code == 2
    error = json.loads(stdout)["error"]
    assert error["exit_code"] == 2
    assert "is empty" in error["message"]


def test_control_characters_of_a_model_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node("Relu", "x", "y"), node("Neg", "x", "y")]
    for item in nodes:
        item.name = "\x1b[2Jgone\a"
    (tmp_path / "m.onnx").write_bytes(model(graph(nodes)).SerializeToString())
    assert_refused([*CONVERT], capsys, r"\\x1b\[2Jgone\\x07")


def test_lying_sizes_take_no_memory(tmp_path: Path) -> None:
    """One process refuses all bad models; its peak is that of the packages and one tiny model."""
    code = """
import resource, sys, tempfile
from pathlib import Path
from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import InputError
from tests.robustness.bad_models import BAD_MODELS
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for bad in BAD_MODELS:
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_onnx(bad.build(Path(folder)))
        except InputError:
            refused += 1
print(refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{root}/src:{root}", "PATH": ""},
    )  # fmt: skip
    refused, grown_mib = map(int, done.stdout.split())
    assert refused == len(BAD_MODELS)
    assert grown_mib < 64  # the smallest of the lies would take 4 GiB


# --- samples ---------------------------------------------------------------------------------


def _npz(**arrays: object) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


def _member(content: bytes, name: str = "x.npy") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return write


def _damaged(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(64, 4)).astype("f4"))
    data = bytearray(path.read_bytes())
    data[80:120] = bytes(40)
    path.write_bytes(data)


def _truncated(path: Path) -> None:
    np.savez(path, x=np.zeros((64, 4), np.float32))
    path.write_bytes(path.read_bytes()[:300])


def _header(shape: str, size: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(size)


def _python_object(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], object))


SAMPLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong size": (_npz(x=np.zeros((2, 5), np.float32)), r"`x`: expected f32\[B, 4\], got shape"),
    "wrong rank": (_npz(x=np.zeros(4, np.float32)), r"`x`: expected f32\[B, 4\], got shape \[4\]"),
    "wrong element type": (_npz(x=np.zeros((2, 4))), r"got f64\[2, 4\]"),
    "other byte order": (_npz(x=np.zeros((2, 4), ">f4")), r"got >f4\[2, 4\]"),
    "dates": (_npz(x=np.zeros((2, 4), "M8[s]")), r"got datetime64"),
    "records": (_npz(x=np.zeros((2, 4), [("a", "f4")])), r"got \["),
    "unknown input": (_npz(x=np.zeros((2, 4), np.float32), z=np.zeros(1)), "no input `z`"),
    "missing input": (_npz(), "`x` is missing"),
    "pickled object": (_python_object, "plain arrays"),
    "text": (lambda path: path.write_text("x = 1\n") and None, "plain arrays"),
    "empty": (lambda path: path.write_bytes(b"") and None, "plain arrays"),
    "member that is no array": (_member(b"hello", "x"), "plain arrays"),
    "header that lies": (_member(_header("(1099511627776, 4)", 32)), "plain arrays"),
    "negative size": (_member(_header("(-2, 4)", 32)), "plain arrays"),
    "header that is code": (_member(_header("__import__('os')", 32)), "plain arrays"),
    "damaged": (_damaged, "plain arrays"),
    "truncated": (_truncated, "plain arrays"),
    "folder without samples": (Path.mkdir, "no `.npz` file"),
    "absent": (lambda path: None, "does not exist"),
}


@pytest.mark.parametrize(("write", "says"), SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("verb", ["convert", "compare"])
def test_bad_sample_is_one_error(
    write: Callable[[Path], None],
    says: str,
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "m.onnx").write_bytes(linear().SerializeToString())
    write(tmp_path / "s.npz")
    argv = [*CONVERT] if verb == "convert" else ["compare", "m.onnx", "m.onnx"]
    assert_refused([*argv, "--inputs", "s.npz"], capsys, says)


# --- what is odd but runs --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "output declared of another rank",
        "unsorted nodes",
        "nodes of one name",
        "input with a default value",
        "initializers of one name, the last counts",
        "NaN weights",
    ],
)
def test_odd_model_is_taken_and_warned_of(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (odd,) = (item for item in ODD_MODELS if item.name == name)
    (tmp_path / "m.onnx").write_bytes(odd.build().SerializeToString())
    code, _, stderr = run([*CONVERT], capsys)
    assert code == 0, stderr
    assert (tmp_path / "out" / "model.onnx").exists()
    warnings = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert any(re.search(odd.warns, line) for line in warnings) or not odd.warns


def test_operator_of_another_domain_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No runtime here has it: the result is written, and said not to be checked."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Frobnicate", "h", "k", domain="acme.ops", level=3, table=weight("t", (2,))),
        node("Relu", "k", "y"),
    ]
    made = model(graph(nodes, initializers=[weight()]), domains=[("acme.ops", 7)])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    code, stdout, stderr = run([*CONVERT], capsys)
    assert code == 0, stderr
    assert re.search(r"checked: no \(.*Frobnicate", " ".join(stdout.split()))
    kept = onnx.load(tmp_path / "out" / "model.onnx")
    (before,) = (item for item in made.graph.node if item.op_type == "Frobnicate")
    (after,) = (item for item in kept.graph.node if item.op_type == "Frobnicate")
    assert after.domain == "acme.ops"
    (old, new) = ({item.name: item for item in n.attribute} for n in (before, after))
    assert old.keys() == new.keys()
    assert new["level"].i == 3
    assert (
        onnx.numpy_helper.to_array(new["table"].t) == onnx.numpy_helper.to_array(old["table"].t)
    ).all()
    assert {(item.domain, item.version) for item in kept.opset_import} >= {("acme.ops", 7)}


def test_infinite_weights_are_ordinary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = onnx.numpy_helper.from_array(np.array([0, -np.inf, 0, 0], np.float32), "m")
    nodes = [node("Add", "x m", "h"), node("Softmax", "h", "y", axis=-1)]
    made = model(graph(nodes, inputs=[info("x")], initializers=[mask]))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    code, stdout, stderr = run([*CONVERT], capsys)
    assert code == 0
    assert stderr == ""
    assert "checked: m" in stdout  # by match or module
