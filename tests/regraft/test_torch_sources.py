"""PyTorch sources of the Python surface and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from torch import nn  # noqa: E402

import regraft  # noqa: E402
from regraft.backends.onnx.runtime import OrtRunner  # noqa: E402
from regraft.cli import main  # noqa: E402
from regraft.ir.errors import InputError, UsageError  # noqa: E402
from regraft.torch_sources import open_factory  # noqa: E402

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return net, (torch.randn(3, 4),), {}, {"input": {0: "batch"}}

def number():
    return 3
"""


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    axes = {"input": {0: torch.export.Dim("batch")}}
    made = torch.export.export(
        net().eval(), (torch.randn(3, 4),), dynamic_shapes=axes, strict=False
    )
    torch.export.save(made, path)
    return path


def test_modules_are_converted_and_compared_with_the_original(tmp_path: Path) -> None:
    model = net()
    result = regraft.convert(
        model, tmp_path / "out", args=(torch.randn(3, 4),), dynamic_shapes={"input": {0: "batch"}}
    )
    assert result.check.verified == "module"
    assert {binding["batch"] for binding in result.check.bindings} == {1, 2, 3}
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    found = OrtRunner(tmp_path / "out" / "model.onnx")({"input": x})["output"]
    expected = model(torch.from_numpy(x)).detach().numpy()
    # 8 products and sums of numbers below 4, each rounded by half an eps
    assert np.abs(found - expected).max() <= 8 * np.finfo(np.float32).eps * 4


def test_a_module_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += 1  # a Python number: the export keeps its first value
            return x * self.calls

    with pytest.raises(regraft.RegraftError, match="output"):
        regraft.convert(Changes(), tmp_path / "out", args=(torch.randn(3, 4),))


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        self.total += x.sum(0)
        return x + self.total


def test_a_module_that_writes_to_itself_is_converted_with_its_state(tmp_path: Path) -> None:
    result = regraft.convert(Counts(), tmp_path / "out", args=(torch.randn(3, 4),))
    assert result.check.verified == "module"
    ones = np.ones((3, 4), np.float32)
    found = OrtRunner(tmp_path / "out" / "model.onnx")({"x": ones, "total": ones[0]})
    assert found["total.next"].tolist() == [4, 4, 4, 4]
    assert (found["output"] == 5).all()


def test_exported_programs_load_from_files_and_objects(program: Path) -> None:
    for module in (regraft.load(program), regraft.capture(program)):
        assert module.name == "net"
        assert list(module.input_types) == ["input"]
        assert set(module.weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert regraft.capture(torch.export.load(program)).symbols


def test_command_line_converts_programs_and_factories(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    for source in (str(program), f"{tmp_path}/nets.py:make"):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as done:
            main(["convert", source, "-o", str(out), "--json", "--force"])
        assert done.value.code in (0, None)
        report = json.loads(capsys.readouterr().out)
        assert report["source"]["path"] == source
        assert (out / "model.onnx").exists()


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for name in ("net.pt", "net.pth", "pytorch_model.bin", "net.ckpt"):
        path = tmp_path / name
        torch.save(net().state_dict(), path)
        with pytest.raises(InputError, match="pickled checkpoint") as caught:
            regraft.load(path)
        assert "torch.export.save" in str(caught.value.hint)


def test_bad_files_and_factories_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    (tmp_path / "bad.pt2").write_bytes(b"no zip")
    with pytest.raises(InputError, match="is not an exported program"):
        regraft.load(tmp_path / "bad.pt2")
    with pytest.raises(InputError, match="does not exist"):
        regraft.load(tmp_path / "none.pt2")
    with pytest.raises(UsageError, match="has no function `none`"):
        regraft.load(f"{tmp_path}/nets.py:none")
    with pytest.raises(UsageError, match="`int`, which is no model"):
        regraft.load(f"{tmp_path}/nets.py:number")
    torch.save({"a": 1}, tmp_path / "zip.pt2")
    with pytest.raises(InputError, match="cannot be read"):
        regraft.load(tmp_path / "zip.pt2")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return 5", "returns a value of type `int`, which is no model"),
        ("return (5, (1,))", "returns a value of type `tuple`, which is no model"),
        ("return {}", "returns a value of type `dict`"),
        ("return torch.nn.ReLU(), torch.zeros(2)", r"returns \(ReLU, Tensor\), not \(module, args"),
        ("return torch.nn.ReLU(), (), [], {}", r"returns \(ReLU, tuple, list, dict\)"),
        ("return torch.nn.ReLU(), (), {}, {}, 5", r"returns \(ReLU, tuple, dict, dict, int\)"),
    ],
)
def test_a_factory_that_returns_no_model_is_a_usage_error(
    code: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "made.py"
    path.write_text(f"import torch\n\n\ndef factory():\n    {code}\n")
    with pytest.raises(UsageError, match=message):
        open_factory(f"{path}:factory")
    with pytest.raises(UsageError, match=r"which is no model|not"):
        regraft.convert(f"{path}:factory", tmp_path / "out")
