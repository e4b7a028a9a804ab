"""Plugins of installed packages: an operator with its body, a pass, an importer and an emitter."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tomllib
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import regraft
from regraft.ir.errors import UsageError
from regraft.ir.text import parse_module
from regraft.plugin_places import load_plugin
from regraft.plugins import Plugin, combine
from regraft.testing import Sample, check_op, floats
from tests.cli.snapshot import run

PACKAGE = Path(__file__).parent / "acme_package"


def install(site: Path, version: str | None = None) -> None:
    """Lays the package out as an installer does: its module, and what it declares beside it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    name, version = project["name"], version or project["version"]
    for old in site.glob("*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{n} = {value}\n" for n, value in points.items())
             for group, points in project["entry-points"].items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines))
    shutil.copy(PACKAGE / "acme_regraft.py", site)
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "acme_regraft", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def plain_model() -> onnx.ModelProto:
    """Returns relu(x - 0.5) * 2 of standard operators."""
    return onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[batch, 4] x) => (float[batch, 4] y) {
            c = Constant<value = float {0.5}>()
            s = Sub(x, c)
            r = Relu(s)
            y = Add(r, r)
        }""")


def own_model() -> onnx.ModelProto:
    """Returns a model with the package's operator, which no runtime knows."""
    node = helper.make_node("ShiftedRelu", ["x"], ["h"], domain="acme", by=0.5)
    double = helper.make_node("Add", ["h", "h"], ["y"])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    graph = helper.make_graph([node, double], "own", infos[:1], infos[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def kinds(path: Path) -> list[str]:
    model = onnx.load(path)
    assert [item.domain for item in model.opset_import] == [""]
    return [node.op_type for node in model.graph.node]


def test_pass_operator_and_emitter_of_a_package(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(plain_model(), tmp_path / "m.onnx")
    line = ["convert", "m.onnx", "-o", "out", "--plugin", "acme", "--json"]
    code, out, err = run([*line, "--passes", "canonicalize,acme-find-shifts"], capsys)
    assert code == 0, err
    report = json.loads(out)
    assert report["operators"]["after"] == {"acme.shifted_relu": 1, "add": 1}
    assert report["check"]["verified"] == "module"
    assert report["passes"][1]["stats"]["match-checked"] == 1
    assert kinds(tmp_path / "out" / "model.onnx") == ["Sub", "Max", "Add"]


@pytest.mark.parametrize("target", ["onnx", "ort-cpu", "ort-cuda"])
def test_importer_of_a_package(site: Path, tmp_path: Path, target: str) -> None:
    onnx.save(own_model(), tmp_path / "own.onnx")
    plugin = load_plugin("acme")
    result = regraft.convert("own.onnx", "out.onnx", target=target, plugins=[plugin])
    assert result.check.verified == "module"  # the evaluator with what the runtime computes
    assert kinds(tmp_path / "out.onnx") == ["Sub", "Max", "Add"]
    assert regraft.compare("own.onnx", "out.onnx", plugins=[plugin]).ok


def test_operator_means_the_same_three_times(site: Path) -> None:
    check_op(load_plugin("acme").operators[0], [Sample((floats(3, 4),), {"by": 0.5})])


def test_text_module_is_written_by_the_emitter(site: Path, tmp_path: Path) -> None:
    plugin = load_plugin("acme")
    text = "graph(%x : f32[B, 4]) {\n%y = acme.shifted_relu(%x) {by = 0.5}\nreturn %y\n}\n"
    module = parse_module(text, ops=combine([plugin]).operators)
    regraft.save(module, "with.onnx", target="onnx", plugins=[plugin])
    regraft.save(module, "without.onnx", target="onnx")
    assert kinds(tmp_path / "with.onnx") == ["Sub", "Max"]
    assert kinds(tmp_path / "without.onnx") == ["Sub", "Relu"]  # its body


def test_rerun_takes_the_same_version_of_a_package(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(plain_model(), tmp_path / "m.onnx")
    line = ["convert", "m.onnx", "-o", "out", "--plugin", "acme", "-q"]
    assert run([*line, "--passes", "acme-find-shifts"], capsys)[0] == 0
    assert "acme: acme-regraft==1.0" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert run(["rerun", "out"], capsys)[0] == 2
    code, out, err = run(["rerun", "out", "--allow-plugins", "--json"], capsys)
    assert code == 0, err
    assert json.loads(out)["files"] == {"model.onnx": True}
    install(site, "1.1")
    code, _, err = run(["rerun", "out", "--allow-plugins"], capsys)
    assert code == 2
    assert "plugin `acme` has changed" in err
    assert run(["rerun", "out", "--plugin", "acme"], capsys)[0] == 0


def test_installed_plugin_is_not_used_unless_named(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["passes", "--json"], capsys)
    assert code == 0
    assert "acme" not in out
    assert "acme-find-shifts" in run(["passes", "--json", "--plugin", "acme"], capsys)[1]


def test_unknown_name_is_answered(site: Path) -> None:
    with pytest.raises(UsageError, match="offers a plugin `acne`") as caught:
        load_plugin("acne")
    assert caught.value.hint == "did you mean `acme`?"


def test_value_that_is_no_plugin_is_refused(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[regraft.plugins]\nacme = acme_regraft:SHIFTED_RELU\n")
    with pytest.raises(UsageError, match="is a OpSpec, not a Plugin"):
        load_plugin("acme")


def test_package_that_fails_is_named(site: Path) -> None:
    (site / "acme_regraft.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=r"plugin `acme` .* fails: ZeroDivisionError"):
        load_plugin("acme")


@pytest.mark.parametrize("what", ["onnx_importers", "onnx_emitters"])
def test_rows_that_exist_are_refused(what: str) -> None:
    family = next(rows for rows in getattr(combine(()), what) if rows)
    clash = Plugin(api_version=1, name="clash", **{what: family[:1]})
    with pytest.raises(UsageError, match=r"plugin `clash`: \w+ of `.+` exists already"):
        combine([clash])
