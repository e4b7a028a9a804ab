"""Quantizing reads weights one at a time: many large matrices take no more memory than one."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, save_model

from benchmarks.measure import ROOT

WIDTH, HIDDEN, DEPTH = 512, 8192, 12
MATRIX_BYTES = 4 * WIDTH * HIDDEN
TOTAL_BYTES = 2 * DEPTH * MATRIX_BYTES

SCRIPT = """
import resource, sys
from pathlib import Path
import regraft
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
module = regraft.load(sys.argv[1])
regraft.apply(module, "canonicalize", check="off")
before = peak()
Quantize(weights="uint4", method=sys.argv[2]).run(module, Context(work_dir=Path(sys.argv[3])))
regraft.apply(module, "legalize{target=ort-cpu}", check="off")
regraft.save(module, Path(sys.argv[3]) / "out.onnx", target="ort-cpu")
print(peak() - before, sum(module.weights[name].nbytes for name in module.weights))
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Returns a file of f32 feed-forward layers, 400 MB of weights beside it."""
    folder = tmp_path_factory.mktemp("deep")
    rng = np.random.default_rng(0)
    nodes, tensors, last = [], [], "x"
    with (folder / "weights.bin").open("wb") as file:
        for idx in range(2 * DEPTH):
            shape = (WIDTH, HIDDEN) if idx % 2 == 0 else (HIDDEN, WIDTH)
            tensor = TensorProto(name=f"w{idx}", data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "weights.bin", "offset": file.tell(), "length": MATRIX_BYTES}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(rng.standard_normal(shape, np.float32).tobytes())
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [last, f"w{idx}"], [f"h{idx}"]))
            nodes.append(helper.make_node("Relu", [f"h{idx}"], [f"a{idx}"]))
            last = f"a{idx}"
    graph = helper.make_graph(
        nodes, "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["b", WIDTH])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, folder / "deep.onnx")
    return folder / "deep.onnx"


@pytest.mark.parametrize("method", ["round", "search"])
def test_to_4_bits_takes_a_few_matrices_of_memory(deep, method, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, deep, method, tmp_path],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    taken, kept = map(int, done.stdout.split())
    # the packed codes of a matrix, an eighth of it, and parts of it that fit the cache; neither the
    # matrix nor, where it is saved, the model
    assert taken < 3 * MATRIX_BYTES
    assert kept > 3 * MATRIX_BYTES
    assert kept < TOTAL_BYTES / 4
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]  # no spilled codes are left
