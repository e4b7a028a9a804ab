"""The Python surface."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

import regraft
from regraft.ir.compare import differences
from regraft.ir.errors import CheckError, InputError, UsageError
from regraft.ir.text import parse_module
from tests.cli.workplace import TEXT, model

NAMES = {
    "Context", "ConvertResult", "Exact", "Lossy", "Module", "Pass", "PassResult", "Plugin",
    "RegraftError", "Reject", "Rule", "Skip", "Within", "__version__", "apply", "capture",
    "compare", "convert", "load", "measure", "read_back", "save", "testing", "to_torch",
}  # fmt: skip
NEED_TORCH = {"read_back", "to_torch"}


def test_the_public_names_are_these() -> None:
    assert set(regraft.__all__) == NAMES
    assert len(regraft.__all__) == len(NAMES)
    assert dir(regraft) == sorted(NAMES)
    known = NAMES if find_spec("torch") else NAMES - NEED_TORCH
    for name in known:
        assert getattr(regraft, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="convrt"):
        _ = regraft.convrt


def test_load_apply_save_compare(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(model(), source)
    module = regraft.load(source)
    (record,) = regraft.apply(module, "canonicalize")
    assert record.verified == "match"
    assert record.nodes_before == 6
    assert record.nodes_after == 3
    out = regraft.save(module, tmp_path / "out.onnx")
    report = regraft.compare(source, out)
    assert report.ok
    assert {b["batch"] for b in report.bindings} == {1, 2, 3}


def test_compare_of_different_models_is_not_ok() -> None:
    report = regraft.compare(model(), model(3.0))
    assert not report.ok
    assert "differs by" in report.outputs[0].reason


def test_text_form_is_saved_and_loaded_with_its_weights(tmp_path: Path) -> None:
    module = regraft.load(model())
    large = regraft.load(_large())
    for name, each in (("small", module), ("large", large)):
        path = regraft.save(each, tmp_path / f"{name}.rg")
        back = regraft.load(path)
        assert differences(each, back) == []
    assert not (tmp_path / "small.rg.weights").exists()
    assert (tmp_path / "large.rg.weights").stat().st_size == 64 * 64 * 4
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tmp_path.glob("large.rg*"):
        file.rename(moved / file.name)
    sample = {"x": np.ones((2, 64), np.float32)}
    assert regraft.compare(large, moved / "large.rg", samples=[sample]).ok


def _large() -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [value("x", TensorProto.FLOAT, ["B", 64])],
        [value("y", TensorProto.FLOAT, ["B", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_save_refuses_to_overwrite_and_unknown_targets(tmp_path: Path) -> None:
    module = regraft.load(model())
    path = regraft.save(module, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="exists"):
        regraft.save(module, path)
    assert regraft.save(module, path, force=True) == path
    with pytest.raises(UsageError, match="cannot be saved as one file") as refused:
        regraft.save(module, tmp_path / "m2.onnx", target="torch")
    assert "`regraft.convert(module, out, target=…)`" in str(refused.value.hint)
    with pytest.raises(UsageError, match="no suffix"):
        regraft.save(module, tmp_path / "m3")


def test_convert_writes_model_report_and_recipe(tmp_path: Path) -> None:
    result = regraft.convert(model(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.onnx", "recipe.yaml", "report.html", "report.json",
    ]  # fmt: skip
    assert result.check.verified == "module"
    assert result.out == tmp_path / "out"


@pytest.mark.parametrize("options", [
    {}, {"opset": 19}, {"freeze": {"batch": 2}}, {"target": "onnx", "seed": 5},
    {"passes": "canonicalize{max-fold-bytes=64}"},
])  # fmt: skip
def test_recipe_of_an_output_reproduces_it_byte_for_byte(
    tmp_path: Path, options: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    from regraft.cli import main

    source = tmp_path / "model.onnx"
    onnx.save(model(), source)
    regraft.convert(source, tmp_path / "a", **options)
    recipe = str(tmp_path / "a" / "recipe.yaml")
    with pytest.raises(SystemExit) as exited:
        main(["convert", str(source), "-o", str(tmp_path / "b"), "--recipe", recipe])
    assert exited.value.code == 0
    for name in ("model.onnx", "recipe.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_apply_takes_passes_and_rules_and_names_an_unknown_check() -> None:
    module = parse_module(TEXT)
    with pytest.raises(UsageError, match="unknown check `all`"):
        regraft.apply(module, "canonicalize", check="all")
    records = regraft.apply(module, "canonicalize", check="off")
    assert records[0].verified == "no (checks are off)"


def test_convert_takes_a_check_by_name_and_names_an_unknown_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown check `all`"):
        regraft.convert(model(), tmp_path / "a", check="all")
    result = regraft.convert(model(), tmp_path / "b", check="off")
    assert result.check.verified == "no (checks are off)"


@pytest.mark.parametrize("check", ["match", "each"])
def test_wrong_rule_is_named_in_every_mode(check: str) -> None:
    class ReluIsNothing(regraft.Rule):
        """relu(x) -> x."""

        def pattern(self, p, x):  # type: ignore[no-untyped-def]  # as users write it
            return p.relu(x)

        def apply(self, plan, b, x):  # type: ignore[no-untyped-def]  # as users write it
            return x

    module = parse_module(TEXT)
    before = str(module)
    with pytest.raises(CheckError, match="rule `relu-is-nothing` at relu `y`"):
        regraft.apply(module, [ReluIsNothing()], check=check)
    assert str(module) == before
    regraft.apply(module, [ReluIsNothing()], check="off")
    assert str(module) != before


def test_sources_that_are_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        regraft.load(tmp_path / "absent.onnx")
    with pytest.raises(regraft.RegraftError, match="no frontend"):
        regraft.load(3)
