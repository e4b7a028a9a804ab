"""Mixtures of codes in modules: which forms of matrices packages hold packed, and which not."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

import regraft
from benchmarks.moe_kernels import layer
from regraft.backends.onnx.save import to_proto
from regraft.backends.triton.low_bit_experts import low_bit_moe, pack_experts
from regraft.backends.triton.package import load_package, save_package
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.evaluate import evaluate
from regraft.ir.ops import reshaping, slicing
from regraft.ir.ops.quant import dequantize
from regraft.passes.protocol import Context
from regraft.passes.quantization.quantize import Quantize
from tests.backends.triton.harness import interpreted

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

SAMPLE = {
    name: np.random.default_rng(seed).standard_normal((9, width), np.float32)
    for seed, (name, width) in enumerate((("x", 32), ("scores", 4)))
}


def one_by_one():
    """Returns a mixture whose experts have a dequantized matrix [in, out] each."""
    module = layer((9,), 4, gated=True, biased=True, top_k=2)
    node = next(node for node in module.graph if node.op.name == "moe")
    b = Builder(module.graph, node, node.loc)
    for idx in (2, 3, 4):
        rows = []
        for matrix in constant_of(node.inputs[idx], 1 << 30):
            low, high = matrix.min(1), matrix.max(1)
            scale = (high - low) / 255
            zero = np.rint(-low / scale)
            codes = np.clip(np.rint(matrix / scale[:, None] + zero[:, None]), 0, 255)
            stored = b.constant(np.ascontiguousarray(codes.T.astype(np.uint8)))
            found = b.op(
                dequantize, stored, b.constant(scale), b.constant(zero.astype(np.uint8)), axis=1
            )
            turned = b.op(reshaping.transpose, found, perm=(1, 0))
            rows.append(b.op(reshaping.unsqueeze, turned, axes=(0,)))
        node.set_operand(idx, b.op(slicing.concat, *rows, axis=0))
    return module


def stacked(weights):
    module = layer((9,), 4, gated=True, biased=True, top_k=2)
    Quantize(weights=weights, activations="none").run(module, Context())
    return module


def read_back():
    """Returns what is read of a file in which ONNX Runtime's QMoE computes the codes."""
    module = stacked("int4")
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    read = regraft.load(to_proto(module, profile="ort-cpu"))
    regraft.apply(read, "canonicalize", check="off")
    return read


FORMS = {
    "one by one": one_by_one,
    "stacked": lambda: stacked("int4"),
    "a table": lambda: stacked("nf4"),
    "bytes of a table": lambda: stacked("fp8_e4m3"),
    "QMoE": read_back,
}


@pytest.mark.parametrize("form", FORMS)
def test_codes_of_any_form_lie_packed(tmp_path, form):
    module = FORMS[form]()
    packed = pack_experts(module)
    assert [node.op for node in packed.graph if "moe" in node.op.name] == [low_bit_moe]
    assert not any(node.op is dequantize for node in packed.graph)
    exact = evaluate(module, SAMPLE, oracle=True)["y"]
    usual = evaluate(module, SAMPLE)["y"]
    folder = tmp_path / form.replace(" ", "_")
    folder.mkdir()
    save_package(module, folder)
    with interpreted():
        found = load_package(folder)(*(torch.from_numpy(x) for x in SAMPLE.values()))
    bound = 4 * np.abs(usual - exact).max() + 1e-6 * np.abs(exact).max()
    assert np.abs(found.detach().double().numpy() - exact).max() <= bound
    assert json.loads((folder / "partition.json").read_text())["kept"] == []
    bits = 8 if "byte" in form or "one" in form else 4
    numbers = 4 * 3 * 32 * 48
    size = (folder / "weights.safetensors").stat().st_size
    assert size < numbers * bits / 8 + 4 * 2 * numbers / 16 + 4000  # codes, scales, biases


def test_matrices_that_are_coded_in_two_ways_are_unpacked_before(tmp_path):
    module = stacked("int4")
    node = next(node for node in module.graph if node.op.name == "moe")
    b = Builder(module.graph, node, node.loc)
    gate = node.inputs[4].producer
    codes = constant_of(gate.inputs[0], 1 << 30).astype(np.int8)
    wide = b.op(dequantize, b.constant(codes), gate.inputs[1], **gate.attrs)
    node.set_operand(4, wide)
    assert pack_experts(module) is module
    save_package(module, tmp_path)
    kept = json.loads((tmp_path / "partition.json").read_text())["kept"]
    assert [row["operator"] for row in kept] == ["moe"]
    assert "unpacks its codes" in kept[0]["reason"]
