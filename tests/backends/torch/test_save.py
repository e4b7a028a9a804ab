"""`model.py` and `model.safetensors`: they need torch alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import regraft
from regraft.ir.errors import UsageError
from regraft.ir.text import parse_module
from tests.backends.torch.models import assert_same_outputs, layer_inputs, layers, torch

from regraft.backends.torch import save_torch, to_torch  # isort: skip  # needs torch
from regraft.backends.torch.executor import TorchRunner, load_file  # isort: skip

SCRIPT = """
import sys, torch, model
net = model.load()
x, mask = torch.full((2, 3, 8), 0.25), torch.ones(2, 3, 1)
print(float(net(x, mask).sum()))
loaded = sorted(name for name in ("regraft", "safetensors", "onnx") if name in sys.modules)
print(loaded)
"""


def test_folder_runs_without_regraft(tmp_path: Path) -> None:
    module = layers()
    save_torch(module, tmp_path / "model.py")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=120, env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    total, loaded = done.stdout.splitlines()
    x, mask = torch.full((2, 3, 8), 0.25), torch.ones(2, 3, 1)
    assert float(total) == pytest.approx(to_torch(module)(x, mask).sum().item(), rel=1e-6)
    assert loaded == "[]"


def test_weights_file_is_read_by_safetensors(tmp_path: Path) -> None:
    module = layers()
    save_torch(module, tmp_path / "model.py")
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(tensors) == set(module.weights)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, module.weights[name].numpy())


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64", "i64", "i8", "u8", "bool", "f8e4m3fn"])
def test_every_element_type_survives(tmp_path: Path, dtype: str) -> None:
    module = parse_module(f"""
weight @w : {dtype}[3, 20] role=buffer = random(1)
graph(%x : {dtype}[3, 20]) {{
  %w = weight @w
  %y = identity(%w)
  return %y
}}
""")
    save_torch(module, tmp_path / "model.py")
    got = TorchRunner(load_file(tmp_path / "model.py"), module)({"x": module.weights["w"].numpy()})[
        "y"
    ]
    want = module.weights["w"].numpy()
    assert got.dtype == want.dtype
    assert got.tobytes() == want.tobytes()


def test_loaded_net_trains_and_its_state_is_saved(tmp_path: Path) -> None:
    save_torch(layers(), tmp_path / "model.py")
    before = (tmp_path / "model.safetensors").read_bytes()
    net = load_file(tmp_path / "model.py")
    x, mask = (torch.from_numpy(a) for a in layer_inputs().values())
    net(x, mask).sum().backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    torch.save(net.state_dict(), tmp_path / "state.pt")
    again = load_file(tmp_path / "model.py")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again(x, mask), net(x, mask))
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_convert_writes_a_checked_folder(tmp_path: Path) -> None:
    module = layers()
    result = regraft.convert(module, tmp_path / "out", target="torch")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        "model.py", "model.safetensors", "report.json", "recipe.yaml",
    }  # fmt: skip
    assert result.check.verified == "module"
    assert result.check.ok
    inputs = layer_inputs()
    net = load_file(tmp_path / "out" / "model.py")
    assert_same_outputs(module, TorchRunner(net, module)(inputs), inputs)


def test_convert_to_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Python source"):
        regraft.convert(layers(), tmp_path / "out.onnx", target="torch")


def without(text: bytes, name: str) -> bytes:
    """Returns a safetensors file whose header lacks a tensor."""
    start = 8 + int.from_bytes(text[:8], "little")
    header = json.loads(text[8:start])
    del header[name]
    return renamed(text, header)


def renamed(text: bytes, header: dict[str, object]) -> bytes:
    start = 8 + int.from_bytes(text[:8], "little")
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + text[start:]


def test_a_file_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    save_torch(layers(), tmp_path / "model.py")
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    names = list(safetensors.numpy.load(whole))
    broken = {
        b"": "is no safetensors file",
        b"<html>" * 100: "is no safetensors file",
        whole[:40]: "is no safetensors file",
        whole[:-4]: "is not whole: it has",
        without(whole, names[0]): f"lacks 1 tensors of the model: `{names[0]}`",
    }
    for text, message in broken.items():
        weights.write_bytes(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_file(tmp_path / "model.py")
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    header["other.name"] = header[names[0]]
    weights.write_bytes(renamed(whole, header))
    with pytest.raises(ValueError, match=r"the file has `other\.name`"):
        load_file(tmp_path / "model.py")
