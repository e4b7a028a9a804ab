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
import regraft
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
module = regraft.load(sys.argv[1])
regraft.apply(module, "canonicalize", check="off")
before = peak()
Quantize(weights="uint4", method=sys.argv[2]).run(module, Context())
regraft.apply(module, "legalize{target=ort-cpu}", check="off")
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


def test_to_4_bits_takes_a_few_matrices_of_memory(deep):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, deep, "round"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    taken, kept = map(int, done.stdout.split())
    # a matrix is held as read, in groups, divided and as codes, decoded and as the error of that
    assert taken < 10 * MATRIX_BYTES
    assert 10 * MATRIX_BYTES < TOTAL_BYTES / 2
    assert kept < TOTAL_BYTES / 4
