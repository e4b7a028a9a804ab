"""Codes of 4-bit products: taken as they lie in a file, or packed from [K, N]."""

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.packed_codes import nbits_codes
from regraft.ir.weights import ArrayWeight, MappedWeight
from regraft.passes.quantization.coded import CodesByOutput, coded
from regraft.passes.quantization.encoding import grid_of, round_to
from regraft.passes.quantization.formats import INT4, INT8, UINT2, UINT4

SHAPE = (96, 40)


def encoded(fmt, shape=SHAPE, group=32):
    matrix = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    return round_to(matrix, grid_of(matrix, fmt, group))


def in_file(found, folder):
    k, n = found.codes.shape
    made = CodesByOutput(found.grid.format, (k, n), found.grid.group)
    made.put(found, slice(0, k), slice(0, n))
    return made.stored("w", folder)


@pytest.mark.parametrize("fmt", [UINT4, INT4, UINT2, INT8], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("shape", [SHAPE, (80, 40)], ids=["whole", "short last group"])
def test_codes_of_a_file_are_those_of_the_matrix(fmt, shape, tmp_path):
    found = encoded(fmt, shape)
    by_file = nbits_codes(in_file(found, tmp_path).codes, 32)
    small = coded("w", found, tmp_path, per_channel=False).codes
    assert isinstance(small, ArrayWeight)
    by_matrix = nbits_codes(small, 32)
    assert by_file.shape == by_matrix.shape == (40, 3, 32 * fmt.bits // 8)
    positions = np.arange(96) < shape[0]
    assert (bits(by_file, fmt)[:, positions] == bits(by_matrix, fmt)[:, positions]).all()
    half = 0 if fmt.low == 0 else 1 << (fmt.bits - 1)
    assert (bits(by_matrix, fmt)[:, positions] == found.codes.T.astype(int) + half).all()


def bits(weight, fmt):
    """Returns the codes of packed bytes, one output per row."""
    rows = weight.numpy().reshape(weight.shape[0], -1)
    per_byte, mask = 8 // fmt.bits, (1 << fmt.bits) - 1
    parts = [(rows >> (at * fmt.bits)) & mask for at in range(per_byte)]
    return np.stack(parts, -1).reshape(len(rows), -1).astype(int)


def test_unsigned_codes_are_not_copied(tmp_path):
    held = in_file(encoded(UINT4), tmp_path)
    (file,) = tmp_path.iterdir()
    taken = nbits_codes(held.codes, 32)
    assert isinstance(taken, MappedWeight)
    assert taken.path == file
    assert taken.made_from == ("w",)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("weights", ["uint4", "int4"])
@pytest.mark.parametrize("transposed", [False, True], ids=["matmul", "gemm"])
def test_a_large_layer_computes_what_its_codes_say(weights, transposed, tmp_path, linear_file):
    path, matrix = linear_file(transposed)
    module = regraft.load(path)
    regraft.apply(module, f"canonicalize,quantize{{weights={weights},method=round}}", check="off")
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, tmp_path / "out.onnx", target="ort-cpu")
    x = np.random.default_rng(4).standard_normal((2, matrix.shape[0])).astype(np.float32)
    fmt = UINT4 if weights == "uint4" else INT4
    want = x @ round_to(matrix, grid_of(matrix, fmt, 32)).decode()
    got = runtime(tmp_path / "out.onnx")({"x": x})["y"]
    # the kernel rounds inputs to 8 bits in blocks: half a step of 1/127 of the largest
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)
    whole = x @ matrix
    assert np.linalg.norm(want - whole) < 0.2 * np.linalg.norm(whole)


def runtime(path):
    from regraft.backends.onnx.runtime import OrtRunner

    return OrtRunner(path)


@pytest.fixture
def linear_file(tmp_path):
    """Returns a maker of a file of one product with a matrix that is rounded as it is read."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    def make(transposed):
        matrix = np.random.default_rng(5).standard_normal((1040, 1024)).astype(np.float32)
        held = np.ascontiguousarray(matrix.T) if transposed else matrix
        node = (
            helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
            if transposed
            else helper.make_node("MatMul", ["x", "w"], ["y"])
        )
        graph = helper.make_graph(
            [node], "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1040])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 1024])],
            [numpy_helper.from_array(held, "w")],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 21)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path = tmp_path / "in.onnx"
        save_model(model, path)
        return path, matrix

    return make
