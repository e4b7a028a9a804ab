"""Long sequences in segments: the numbers of the whole, states, and what is not cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.opspec import OpSpec
from regraft.ir.types import TensorType, dtype_of
from tests.conformance.cases import run_ort

Array = np.ndarray[Any, Any]

H, G, D = 4, 2, 8
RNG = np.random.default_rng(3)


def _operands(batch: int, length: int) -> list[Array]:
    shapes = [(batch, H, length, D), *[(batch, H // G, length, D)] * 2]
    return [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]


def _compiled(
    spec: OpSpec, operands: list[Array], **attrs: Any
) -> tuple[list[Array], list[Array], onnx.ModelProto]:
    """Returns what the operator gives in its numpy meaning and in ONNX Runtime, and the model."""
    module = Module(Graph())
    values = [
        module.graph.add_input(f"x{i}", TensorType(dtype_of(x), x.shape))
        for i, x in enumerate(operands)
    ]
    for i, value in enumerate(module.graph.create(spec, values, attrs).outputs):
        module.graph.add_output(f"y{i}", value)
    expected = list(evaluate(module, {f"x{i}": x for i, x in enumerate(operands)}).values())
    regraft.apply(module, "canonicalize,legalize{target=ort-cpu}", check="off")
    proto = to_proto(module, profile="ort-cpu")
    return expected, run_ort(proto, operands), proto


def _ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def _assert_close(found: list[Array], expected: list[Array]) -> None:
    for own, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("given", [False, True], ids=["start", "state"])
@pytest.mark.parametrize(("feature_map", "normalizer"), [("softmax", "sum"), ("none", "none")])
@pytest.mark.parametrize("length", [1024, 1500])
def test_linear_attention_hands_its_state_on(
    length: int, feature_map: str, normalizer: str, given: bool
) -> None:
    operands = _operands(1, length)
    if given:
        state = np.abs(RNG.standard_normal((1, H // G, D, D + (normalizer == "sum"))))
        operands.append(state.astype(np.float32))
    expected, found, proto = _compiled(
        linear_attention, operands, rule="linear", scale=0.3, kv_groups=G,
        feature_map=feature_map, normalizer=normalizer,
    )  # fmt: skip
    assert "Scan" in _ops(proto)
    assert "LinearAttention" not in _ops(proto)
    _assert_close(found, expected)


@pytest.mark.parametrize("window", [5, 64, 100, 200])
def test_a_window_reaches_into_the_segment_before(window: int) -> None:
    operands = _operands(1, 1600 if window > 64 else 1024)
    expected, found, proto = _compiled(
        attention, operands, scale=0.3, kv_groups=G, causal_offset=0, window=(window, 0)
    )
    assert "Scan" in _ops(proto)
    _assert_close(found, expected)


@pytest.mark.parametrize(("batch", "length"), [(2, 1024), (1, 1031), (1, 512)])
def test_what_is_not_cut(batch: int, length: int) -> None:
    """A batch would be copied; a prime has no parts; a short sequence stays in the cache."""
    operands = _operands(batch, length)
    for spec, attrs in (
        (linear_attention, {"rule": "linear"}),
        (attention, {"causal_offset": 0, "window": (32, 0)}),
    ):
        expected, found, proto = _compiled(spec, operands, scale=0.3, kv_groups=G, **attrs)
        assert "Scan" not in _ops(proto)
        _assert_close(found, expected)
