"""`inspect --depth`: the report as data and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from regraft.cli.main import cli
from regraft.inspection import describe_depth
from regraft.ir.errors import UsageError
from regraft.ir.text import parse_module
from tests.passes.depth.stacks import samples, stack


def test_layers_are_described_on_samples_and_on_generated_ones() -> None:
    given = describe_depth(stack(4), samples(2), {})
    assert given["samples"] == 2
    assert [layer["number"] for layer in given["layers"]] == [0, 1, 2, 3]
    assert json.loads(json.dumps(given))["adds_up"][0] < 1e-5
    made = describe_depth(stack(4), [], {"B": 3})
    assert made["samples"] >= 1
    assert all(layer["outputs_without"] > 0 for layer in made["layers"])


def test_a_model_without_layers_is_refused() -> None:
    module = parse_module('module "m"\ngraph(%x : f32[2, 3]) {\n  %y = relu(%x)\n  return %y\n}')
    with pytest.raises(UsageError, match="no layers repeat"):
        describe_depth(module, [{"x": np.ones((2, 3), np.float32)}], {})


def test_the_command_prints_data_and_writes_a_page(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="pages are made from templates")
    source, page = tmp_path / "stack.onnx", tmp_path / "page.html"
    import regraft

    regraft.save(stack(3), source)
    np.savez(tmp_path / "one.npz", h0=samples(1)[0]["h0"])
    arguments = ["inspect", str(source), "--depth", "--calibrate", str(tmp_path / "one.npz")]
    done = CliRunner().invoke(cli, [*arguments, "--json", "--html", str(page)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert len(report["depth"]["layers"]) == 3
    text = page.read_text(encoding="utf-8")
    assert "lost without" in text
    assert report["depth"]["layers"][1]["name"] in text
    shown = CliRunner().invoke(cli, arguments)
    assert "layers, on 1 samples" in shown.output
