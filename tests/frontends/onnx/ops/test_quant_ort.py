"""Quantized operators of com.microsoft: the evaluator agrees with ONNX Runtime, and they return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import is_constant, opaque
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from tests.single_node import single_node

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"
K, N = 40, 24


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(seed: int, *shape: int) -> Array:
    return generator(seed).standard_normal(shape).astype(np.float32)


def scales(seed: int, *shape: int) -> Array:
    return generator(seed).uniform(0.01, 0.03, shape).astype(np.float32)


def codes(seed: int, *shape: int, kind: Any = np.uint8, high: int = 120) -> Array:
    low = -high if np.dtype(kind).kind == "i" else 0
    return generator(seed).integers(low, high, shape).astype(kind)


def point(value: int, kind: Any = np.uint8) -> Array:
    return np.asarray(value, kind)


def check(
    op_type: str,
    operands: list[Array | None],
    constant: tuple[int, ...],
    bound: float,
    **attrs: Any,
) -> None:
    """ONNX Runtime, the evaluator, and the file after legalization say the same.

    `bound` is a fraction of the largest output.
    """
    proto = single_node(op_type, 21, operands, constant=constant, domain=MICROSOFT)
    proto.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attrs.items())
    proto.opset_import.add(domain=MICROSOFT, version=1)
    feeds = {f"x{i}": x for i, x in enumerate(operands) if x is not None and i not in constant}
    want = OrtRunner(proto)(feeds)["y0"].astype(np.float64)
    module = load_onnx(proto)
    assert all(node.op is not opaque for node in module.graph)
    assert not any(node.op.name.startswith("ort.") for node in module.graph)
    atol = bound * float(np.abs(want).max())
    got = evaluate(module, feeds)["y0"].astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    Legalize("ort-cpu").run(module, Context(legalizers=legalizers(), target="ort-cpu"))
    again = OrtRunner(to_proto(module, profile="ort-cpu"))(feeds)["y0"].astype(np.float64)
    np.testing.assert_allclose(again, want, rtol=0, atol=atol)


# sums of K exact products in f32, in another order
EXACT = K * float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul_integer_to_float(kind: Any, per_column: bool, zero: bool, bias: bool) -> None:
    wide = (N,) if per_column else ()
    middle = np.full(wide, 3, kind) if zero else None
    operands = [
        codes(0, 3, K), codes(1, K, N, kind=kind), scales(2), scales(3, *wide), point(117), middle,
        floats(4, N) if bias else None,
    ]  # fmt: skip
    check("MatMulIntegerToFloat", operands, (1, 2, 3, 4, 5, 6), EXACT)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_dynamic_quantize_matmul(kind: Any) -> None:
    operands = [
        floats(0, 3, K), codes(1, K, N, kind=kind), scales(2, N), np.full(N, 5, kind), floats(3, N)
    ]  # fmt: skip
    check("DynamicQuantizeMatMul", operands, (1, 2, 3, 4), EXACT)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("points", [False, True])
def test_matmul_nbits(bits: int, points: bool) -> None:
    group, blocks = 16, 3
    zeros = codes(3, N, -(-blocks * bits // 8), high=255) if points else None
    operands = [
        floats(0, 3, K), codes(1, N, blocks, group * bits // 8, high=255), scales(2, N, blocks),
        zeros, None, floats(5, N),
    ]  # fmt: skip
    # level 0 computes in f32, what legalization writes rounds the rows to 8 bits
    check("MatMulNBits", operands, (1, 2, 3, 5), 0.02, K=K, N=N, bits=bits, block_size=group)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("points", [False, True])
def test_gather_block_quantized(bits: int, points: bool) -> None:
    rows, width, group = 11, 64, 16
    blocks = width // group
    zeros = codes(3, rows, -(-blocks * bits // 8), high=255) if points else None
    operands = [
        codes(1, rows, width * bits // 8, high=255), np.array([[3, 0], [10, 10]], np.int64),
        scales(2, rows, blocks), zeros,
    ]  # fmt: skip
    check(
        "GatherBlockQuantized", operands, (0, 2, 3), EXACT,
        bits=bits, block_size=group, gather_axis=0, quantize_axis=1,
    )  # fmt: skip


# one step of the result's codes: values in the middle may be rounded to either side
ONE_STEP = 1 / 100


@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
def test_qlinear_of_two(op_type: str) -> None:
    operands = [
        codes(0, 3, 8), scales(1), point(7), codes(2, 3, 8), scales(3), point(9), scales(4) * 3,
        point(20),
    ]  # fmt: skip
    check(op_type, operands, (1, 2, 4, 5, 6, 7), ONE_STEP)


@pytest.mark.parametrize(
    ("op_type", "attrs", "step"),
    [
        ("QLinearSigmoid", {}, 1 / 256),
        ("QLinearLeakyRelu", {"alpha": 0.2}, 0.02),
        ("QLinearSoftmax", {"axis": -1, "opset": 13}, 1 / 256),
        ("QLinearGlobalAveragePool", {}, 0.02),
        ("QLinearAveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, 0.02),
    ],
)
def test_qlinear_of_one(op_type: str, attrs: dict[str, Any], step: float) -> None:
    out_zero = point(0 if "max" in op_type or "moid" in op_type else 128)
    operands = [
        codes(0, 2, 3, 4, 4), scales(1), point(60), np.asarray(step, np.float32), out_zero
    ]  # fmt: skip
    check(op_type, operands, (1, 2, 3, 4), ONE_STEP, **attrs)


def test_qlinear_concat() -> None:
    operands = [
        scales(0), point(3), codes(1, 2, 5), scales(2), point(4), codes(3, 2, 6), scales(4),
        point(5),
    ]  # fmt: skip
    check("QLinearConcat", operands, (0, 1, 3, 4, 6, 7), ONE_STEP, axis=1)


@pytest.mark.parametrize("quantized", [False, True])
def test_qgemm(quantized: bool) -> None:
    last = [np.asarray(0.5, np.float32), point(128)] if quantized else [None, None]
    bias = generator(6).integers(-999, 999, N).astype(np.int32)
    operands = [
        codes(0, 3, K), scales(1), point(66), codes(2, N, K, kind=np.int8), scales(3),
        point(0, np.int8), bias, *last,
    ]  # fmt: skip
    check("QGemm", operands, (1, 2, 3, 4, 5, 6, 7, 8), ONE_STEP, transB=1)


NET = f"""
module "net"
symbol B
weight @up : f32[{K}, {N}] = random(2)
weight @bias : f32[{N}] = random(3)

graph(%x : f32[B, {K}]) {{
  %up = weight @up
  %bias = weight @bias
  %h = matmul(%x, %up)
  %y = add(%h, %bias)
  return %y
}}
"""


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int8", "activations": "dynamic"},
        {"weights": "int8", "activations": "token"},
        {"weights": "int4", "method": "round"},
        {"weights": "uint4", "method": "round"},
        {"weights": "uint2", "method": "round"},
        {"weights": "int8", "group": 32, "method": "round"},
    ],
    ids=str,
)
def test_what_was_legalized_and_saved_comes_back_canonical(options: dict[str, Any]) -> None:
    module = parse_module(NET)
    Quantize(**options).run(module, Context())
    want = text_of(module)
    feeds = {"x": floats(1, 3, K)}
    outputs = evaluate(module, feeds)
    Legalize("ort-cpu").run(module, Context(legalizers=legalizers(), target="ort-cpu"))
    back = load_onnx(to_proto(module, profile="ort-cpu"))
    Canonicalize().run(back, Context())
    assert text_of(back) == want
    np.testing.assert_array_equal(evaluate(back, feeds)["y"], outputs["y"])


def text_of(module: Module) -> list[str]:
    """Operators with their types, sorted; small constants come back inline."""
    return sorted(
        f"{'constant' if is_constant(node.outputs[0]) else node.op.name}"
        f" {[str(value.type) for value in node.outputs]}"
        for node in module.graph
    )
