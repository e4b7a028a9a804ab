"""Experts in 4 and 8 bits: stored by `quantize`, computed by ONNX Runtime's QMoE, read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import regraft
from benchmarks.moe_kernels import layer
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import TargetError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops import moe, quant
from regraft.passes.protocol import Context
from regraft.passes.quantization.quantize import Quantize

_EPS = float(np.finfo(np.float32).eps)
_INT8_INPUTS = 3e-2
"""The kernel rounds inputs of both layers to 8 bits: each half a step of 1/127."""


def _quantized(weights: str, gated: bool, **attrs: Any) -> tuple[Module, Any, list[str]]:
    module = layer((9,), 4, gated=gated, biased=True, top_k=2, **attrs)
    result = Quantize(weights=weights).run(module, Context())
    return module, result, [str(skip.reason) for skip in result.skipped]


def _sample(rows: int = 9) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, 32)).astype(np.float32),
        "scores": rng.standard_normal((rows, 4)).astype(np.float32),
    }


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize(
    ("gated", "attrs"),
    [
        (False, {"activation": "relu"}),
        (False, {"activation": "gelu_tanh", "scoring": "topk_softmax"}),
        (True, {"activation": "silu", "renormalize": True}),
        (True, {"activation": "quick_gelu", "limit": 0.7, "up_offset": 1.0}),
        (True, {"activation": "silu", "scoring": "sigmoid", "routed_scale": 2.5}),
    ],
)
def test_the_kernel_computes_what_the_codes_mean(
    weights: str, gated: bool, attrs: dict[str, Any]
) -> None:
    module, result, _ = _quantized(weights, gated, **attrs)
    assert result.stats["matrices-of-experts"] == 2 + gated
    sample = _sample()
    want = evaluate(module, sample, oracle=True)["y"]
    legal = module.clone()
    regraft.apply(legal, "legalize{target=ort-cpu}", check="off")
    assert [node.op.name for node in legal.graph if "moe" in node.op.name] == ["ort.moe_nbits"]
    scale = np.abs(want).max()
    # sums of 48 products, in f32
    np.testing.assert_allclose(evaluate(legal, sample)["y"], want, rtol=0, atol=64 * _EPS * scale)
    proto = to_proto(legal, profile="ort-cpu")
    assert [node.op_type for node in proto.graph.node].count("QMoE") == 1
    np.testing.assert_allclose(
        OrtRunner(proto)(sample)["y"], want, rtol=0, atol=_INT8_INPUTS * scale
    )
    if weights == "int8":
        return
    for attr in next(n for n in proto.graph.node if n.op_type == "QMoE").attribute:
        if attr.name == "accuracy_level":
            attr.i = 0  # inputs in float
    atol = 64 * _EPS * scale
    np.testing.assert_allclose(OrtRunner(proto)(sample)["y"], want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("gated", "scoring"), [(False, "softmax"), (True, "sigmoid"), (True, "topk_softmax")]
)
def test_what_was_written_is_read_back(gated: bool, scoring: str, tmp_path: Any) -> None:
    attrs: dict[str, Any] = {"activation": "silu", "scoring": scoring}
    module, _, _ = _quantized("int4", gated, **attrs)
    before = evaluate(module, _sample())["y"]
    for name, form in (("codes.onnx", module), ("float.onnx", None)):
        source = form or layer((9,), 4, gated=gated, biased=True, top_k=2, **attrs)
        want = before if form is not None else evaluate(source, _sample())["y"]
        regraft.apply(source, "legalize{target=ort-cpu}", check="off")
        regraft.save(source, tmp_path / name, target="ort-cpu")
        read = regraft.load(tmp_path / name)
        (node,) = (node for node in read.graph if node.op is moe.moe)
        assert (node.inputs[4] is not None) == gated
        is_coded = [v.producer.op is quant.dequantize for v in node.inputs[2:4] if v and v.producer]
        assert is_coded == [form is not None] * 2
        got = evaluate(read, _sample())["y"]
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * _EPS * np.abs(want).max())


def test_experts_stay_at_the_level_of_the_file(tmp_path: Any) -> None:
    module, _, _ = _quantized("int4", True, activation="silu")
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    written = to_proto(module, profile="ort-cpu")
    assert _level(written).i == 4
    _level(written).i = 0
    onnx.save(written, tmp_path / "in.onnx")
    read = regraft.load(tmp_path / "in.onnx")
    regraft.apply(read, "legalize{target=ort-cpu}", check="off")
    assert _level(to_proto(read, profile="ort-cpu")).i == 0


def _level(proto: onnx.ModelProto) -> onnx.AttributeProto:
    (node,) = (node for node in proto.graph.node if node.op_type == "QMoE")
    return next(attr for attr in node.attribute if attr.name == "accuracy_level")


def test_experts_without_a_kernel_are_dequantized() -> None:
    module, result, _ = _quantized("int4", True, activation="gelu")
    assert result.stats["matrices-of-experts"] == 3
    sample = _sample()
    want = evaluate(module, sample)["y"]
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    proto = to_proto(module, profile="ort-cpu")
    ops = {node.op_type for node in proto.graph.node}
    assert "DequantizeLinear" in ops
    assert "QMoE" not in ops
    got = OrtRunner(proto)(sample)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * _EPS * np.abs(want).max())


@pytest.mark.parametrize("weights", ["nf4", "nvfp4", "fp8_e4m3"])
def test_experts_in_codes_of_a_table_are_looked_up(weights: str) -> None:
    module, result, _ = _quantized(weights, True)
    assert result.stats["matrices-of-experts"] == 3
    sample = _sample()
    want = evaluate(module, sample)["y"]
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    got = OrtRunner(to_proto(module, profile="ort-cpu"))(sample)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * _EPS * np.abs(want).max())
    worst = max(layer.error for layer in result.layers)
    assert 0 < worst < 0.2  # a table of 16 numbers keeps a tenth of what weights vary by


def test_what_stays_in_float_says_why() -> None:
    with pytest.raises(TargetError, match="in a table's codes, and not as uint4"):
        _quantized("uint4", True)
    with pytest.raises(TargetError, match="no block of 32 or more in common"):
        _quantized("mxfp4", True)
