"""The check of models whose 4-bit products ONNX Runtime rounds, or does not, by an attribute."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regraft.backends.onnx.runtime import OrtRunner
from regraft.conversion import convert
from regraft.conversion_options import ConvertOptions
from regraft.ir.builder import Builder
from regraft.ir.errors import CheckError
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.passes.protocol import Context, Contract, Exact, PassResult
from regraft.passes.quantization import MendQuantized

LEVELS = (0, 4)


def written(folder: Path, level: int | None, *, is_external: bool = False) -> Path:
    """Writes two products by 4-bit matrices, one within a branch."""
    rng = np.random.default_rng(0)
    held, nodes = [], []
    stated = {} if level is None else {"accuracy_level": level}
    for idx, (source, out) in enumerate((("x", "a"), ("a", "y"))):
        codes = rng.integers(0, 255, (64, 2, 16)).astype(np.uint8)
        scales = rng.uniform(0.005, 0.02, (64, 2)).astype(np.float32)
        held += [numpy_helper.from_array(codes, f"w{idx}"),
                 numpy_helper.from_array(scales, f"s{idx}")]  # fmt: skip
        nodes.append(helper.make_node(
            "MatMulNBits", [source, f"w{idx}", f"s{idx}"], [out], domain="com.microsoft",
            K=64, N=64, bits=4, block_size=32, **stated,
        ))  # fmt: skip
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([nodes[1]], "then", [], [result])
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["y"])], "else", [], [result])
    chosen = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=other)
    graph = helper.make_graph(
        [nodes[0], chosen], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 64]),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", 64])], held,
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    file = folder / "model.onnx"
    onnx.save(model, file, save_as_external_data=is_external, size_threshold=64)
    return file


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
def test_rounding_of_kernels_is_no_difference(tmp_path: Path, level: int, target: str) -> None:
    source = written(tmp_path, level)
    result = convert(source, tmp_path / "out.onnx", ConvertOptions(target=target))
    assert result.check.ok
    assert max(diff.max_rel for diff in result.check.outputs) < 1e-5
    # the runtime makes the kernel of level 4 of what `onnx` has: equal kernels need no second run
    differs = level != 4 and target == "onnx"
    assert ("rounds what it multiplies" in result.check.note) == differs


@pytest.mark.parametrize("level", [None, 0, 1, 4])
def test_products_stay_at_the_level_of_the_file(tmp_path: Path, level: int | None) -> None:
    source = written(tmp_path, level)
    convert(source, tmp_path / "out.onnx", ConvertOptions())
    assert levels(tmp_path / "out.onnx") == [level or 0] * 2
    sample = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32),
              "c": np.array(True)}  # fmt: skip
    found, wanted = (OrtRunner(file)(sample)["z"] for file in (tmp_path / "out.onnx", source))
    np.testing.assert_array_equal(found, wanted)  # the same kernels


def test_products_of_a_mended_file_are_of_integers(tmp_path: Path) -> None:
    options = ConvertOptions(passes=[MendQuantized()])
    convert(written(tmp_path, 0), tmp_path / "out.onnx", options)
    assert levels(tmp_path / "out.onnx") == [4, 4]


def levels(file: Path) -> list[int]:
    """Returns the level of every 4-bit product of a file, those in branches too."""
    held, found = [onnx.load(file).graph], []
    while held:
        for node in held.pop(0).node:
            attrs = {attr.name: helper.get_attribute_value(attr) for attr in node.attribute}
            if node.op_type == "MatMulNBits":
                found.append(attrs["accuracy_level"])
            held += [each for each in attrs.values() if isinstance(each, onnx.GraphProto)]
    return found


def test_external_weights_are_found_for_the_second_run(tmp_path: Path) -> None:
    source = written(tmp_path, 0, is_external=True)
    result = convert(source, tmp_path / "out.onnx", ConvertOptions(target="onnx"))
    assert "rounds what it multiplies" in result.check.note


@dataclass(frozen=True)
class Larger:
    """Says that it changes nothing, and makes the output 0.2 % larger: less than rounding does."""

    name: ClassVar[str] = "larger"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        (out,) = module.graph.outputs
        b = Builder(module.graph)
        larger = b.op(arithmetic.mul, out, b.constant(np.float32(1.002)))
        module.graph.set_outputs([("z", larger)])
        return PassResult(changed=True)


@pytest.mark.parametrize("level", LEVELS)
def test_errors_smaller_than_the_rounding_are_found(tmp_path: Path, level: int) -> None:
    source = written(tmp_path, level)
    with pytest.raises(CheckError, match="differs by"):
        convert(source, tmp_path / "out.onnx", ConvertOptions(target="onnx", passes=[Larger()]))
