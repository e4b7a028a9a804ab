"""What a model calls its parts is data: no name of it becomes code of a package."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

import regraft

HOSTILE = (
    "a\nOWNED = 1\nif 0:",
    'a"""\nOWNED = 1\n"""',
    "a'''\rOWNED = 1\r'''",
    'a\\"""\u2028OWNED = 1\x0c',
    '"',
    "\\",
)


def model(name: str) -> onnx.ModelProto:
    """Returns two equal layers and a chain, all of whose parts are called after `name`."""
    nodes, x, stored = [], f"{name}.x", []
    for layer in range(2):
        weight, moved, made = (f"{name}.{layer}.{part}" for part in ("weight", "product", "y"))
        stored.append(numpy_helper.from_array(np.eye(16, dtype=np.float32) * (layer + 1), weight))
        nodes.append(helper.make_node("MatMul", [x, weight], [moved], name=f"{name}/{layer}/m"))
        nodes.append(helper.make_node("Tanh", [moved], [f"{made}.s"], name=f"{name}/{layer}/s"))
        nodes.append(helper.make_node("Mul", [moved, f"{made}.s"], [made], name=f"{name}{layer}"))
        x = made
    ends = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, [4, 16]) for each in (f"{name}.x", x)
    ]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], stored, doc_string=name)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, doc_string=name
    )


@pytest.mark.parametrize("target", ["torch", "triton"])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_a_model_are_no_code(name: str, target: str, tmp_path: Path) -> None:
    regraft.convert(model(name), tmp_path / "made", target=target, check="off")
    sources = sorted((tmp_path / "made").glob("*.py"))
    assert sources
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "OWNED" not in names, path.name
