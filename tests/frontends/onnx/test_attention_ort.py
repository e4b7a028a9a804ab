"""ONNX Runtime's attention operators raise to `attention`; the runtime itself is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.evaluate import evaluate
from regraft.ir.ops.attention import attention

B, S, H, D = 2, 5, 4, 8
RNG = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape, np.float32)


def _model(
    op_type: str, inputs: dict[str, np.ndarray[Any, Any]], slots: list[str], **attrs: Any
) -> onnx.ModelProto:
    outputs = ["y", "pk", "pv"] if op_type == "GroupQueryAttention" else ["y"]
    node = helper.make_node(op_type, slots, outputs, domain="com.microsoft", **attrs)
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [B, S, H * D])
    graph = helper.make_graph([node], "g", infos, [out])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _agrees(model: onnx.ModelProto, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    expected = OrtRunner(model, optimize=False)(inputs)["y"]
    module = load_onnx(model)
    assert [node.op for node in module.graph if node.op is attention] == [attention]
    found = evaluate(module, inputs)["y"]
    assert np.abs(expected).max() > 0.1
    # f32 sums of at most 8 products and 5 keys, in another order
    assert np.abs(found - expected).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()


MULTI_HEAD: dict[str, tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]] = {
    "plain": ({}, {}),
    "scale": ({}, {"scale": 0.5}),
    "causal": ({}, {"unidirectional": 1}),
    "bias": ({"bias": _normal(3 * H * D)}, {}),
    "padding": ({"padding": np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)}, {}),
    "addend": ({"addend": _normal(1, H, S, S)}, {}),
    "filter": (
        {"padding": np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)}, {"mask_filter_value": -5.0}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multi_head_attention(name: str) -> None:
    more, attrs = MULTI_HEAD[name]
    inputs = {x: _normal(B, S, H * D) for x in ("q", "k", "v")} | more
    slots = ["q", "k", "v", *(x if x in more else "" for x in ("bias", "padding", "addend"))]
    _agrees(_model("MultiHeadAttention", inputs, slots, num_heads=H, **attrs), inputs)


def test_packed_multi_head_attention_stays_opaque() -> None:
    inputs = {"q": _normal(B, S, H, 3, D)}
    module = load_onnx(_model("MultiHeadAttention", inputs, ["q"], num_heads=H))
    assert [node.op for node in module.graph] == [opaque]


def _group_query(last: int, total: int, **attrs: Any) -> onnx.ModelProto:
    inputs = {"q": _normal(B, S, H * D), "k": _normal(B, S, 2 * D), "v": _normal(B, S, 2 * D)}
    empty = np.zeros((B, 2, 0, D), np.float32)
    model = _model(
        "GroupQueryAttention", inputs, ["q", "k", "v", "past", "past", "last", "total"],
        num_heads=H, kv_num_heads=2, **attrs,
    )  # fmt: skip
    constants = {"past": empty, "last": np.full(B, last, np.int32), "total": np.int32(total)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    return model


@pytest.mark.parametrize("attrs", [{}, {"scale": 0.5}, {"causal": 0}, {"softcap": 2.0}], ids=str)
def test_group_query_attention_with_an_empty_past(attrs: dict[str, Any]) -> None:
    model = _group_query(S - 1, S, **attrs)
    inputs = {"q": _normal(B, S, H * D), "k": _normal(B, S, 2 * D), "v": _normal(B, S, 2 * D)}
    _agrees(model, inputs)


def test_group_query_attention_of_shorter_sequences_stays_opaque() -> None:
    module = load_onnx(_group_query(S - 2, S))
    assert opaque in [node.op for node in module.graph]


def test_group_query_attention_with_rotary_embedding_stays_opaque() -> None:
    module = load_onnx(_group_query(S - 1, S, do_rotary=1))
    assert opaque in [node.op for node in module.graph]
