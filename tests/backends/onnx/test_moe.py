"""The operator `moe` in ONNX Runtime against PyTorch: kernel and standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, Symbol
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role

D, F = 16, 24
_RTOL = 1e-5
"""Of the largest result: f32 sums of 24 products, and exponentials of the runtime's own."""


def _module(
    shape: tuple[Any, ...], experts: int, *, gated: bool, biased: bool, **attrs: Any
) -> Module:
    rng = np.random.default_rng(experts)
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", TensorType(DType.F32, (*shape, D)))
    scores = graph.add_input("scores", TensorType(DType.F32, (*shape, experts)))

    def parameter(name: str, *sizes: int) -> Any:
        array = (rng.standard_normal(sizes) / 4).astype(np.float32)
        return b.weight(name, ArrayWeight(array), Role.PARAM)

    up, down = parameter("up", experts, F, D), parameter("down", experts, D, F)
    gate = parameter("gate", experts, F, D) if gated else None
    up_bias = parameter("up_bias", experts, F) if biased else None
    down_bias = parameter("down_bias", experts, D) if biased else None
    gate_bias = parameter("gate_bias", experts, F) if biased and gated else None
    made = b.op(moe.moe, x, scores, up, down, gate, up_bias, down_bias, gate_bias, **attrs)
    graph.set_outputs([("y", made)])
    return Module(graph, "moe")


def _inputs(rows: tuple[int, ...], experts: int, skew: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng(len(rows))
    scores = rng.standard_normal((*rows, experts)).astype(np.float32)
    scores[..., 0] += skew  # with a large one all tokens choose the first expert first
    return {"x": rng.standard_normal((*rows, D)).astype(np.float32), "scores": scores}


def _check(module: Module, inputs: dict[str, Any], profile: str, *, kernel: bool) -> None:
    proto = to_proto(module, profile=profile)
    assert any(node.op_type == "MoE" for node in proto.graph.node) is kernel
    expected = evaluate(module, inputs, oracle=True)["y"]
    result = OrtRunner(proto)(inputs)["y"]
    assert np.abs(result - expected).max() <= _RTOL * np.abs(expected).max()


@pytest.mark.parametrize("rows", [(7,), (2, 5)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k"), [(2, 1), (2, 2), (4, 2), (4, 3), (8, 1), (8, 8), (16, 4), (64, 6)]
)
def test_kernel_computes_what_the_operator_means(
    experts: int, top_k: int, gated: bool, biased: bool, rows: tuple[int, ...]
) -> None:
    for activation in ("silu", "quick_gelu") if gated else ("relu", "silu", "gelu_tanh"):
        for scoring, again in (("softmax", False), ("softmax", True), ("topk_softmax", False),
                               ("sigmoid", False), ("sigmoid", True)):  # fmt: skip
            attrs = {"top_k": top_k, "scoring": scoring, "renormalize": again}
            module = _module(
                rows, experts, gated=gated, biased=biased, activation=activation,
                routed_scale=2.5 if scoring == "sigmoid" else 1.0, **attrs,
            )  # fmt: skip
            _check(module, _inputs(rows, experts), "ort-cpu", kernel=True)


def test_limits_and_offsets_are_those_of_the_kernel() -> None:
    attrs = {"activation": "quick_gelu", "limit": 0.5, "up_offset": 1.0, "top_k": 2}
    module = _module((7,), 4, gated=True, biased=True, scoring="topk_softmax", **attrs)
    _check(module, _inputs((7,), 4), "ort-cpu", kernel=True)


@pytest.mark.parametrize(
    ("gated", "attrs"),
    [
        (False, {"activation": "gelu"}),  # the kernel's gelu is the tanh form
        (True, {"activation": "gelu"}),
        (True, {"activation": "gelu_tanh"}),
        (False, {"activation": "relu2"}),
        (True, {"activation": "silu", "weigh_input": True}),
        (True, {"activation": "silu", "scoring": "given"}),
        (True, {"activation": "silu", "capacity": 1.0}),
    ],
)
def test_what_the_kernel_does_not_do_is_written_out(gated: bool, attrs: dict[str, Any]) -> None:
    module = _module((7,), 4, gated=gated, biased=False, top_k=2, **attrs)
    _check(module, _inputs((7,), 4), "ort-cpu", kernel=False)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("gated", "attrs"),
    [
        (True, {"activation": "silu", "scoring": "topk_softmax"}),
        (False, {"activation": "relu"}),
        (True, {"activation": "quick_gelu", "limit": 0.5, "up_offset": 1.0}),
        (True, {"activation": "silu", "weigh_input": True, "scoring": "sigmoid"}),
    ],
)
def test_experts_gather_their_tokens_where_these_are_many(
    gated: bool, attrs: dict[str, Any], biased: bool
) -> None:
    module = _module((4, 8), 4, gated=gated, biased=biased, top_k=2, **attrs)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    for skew in (0.0, 99.0):
        _check(module, _inputs((4, 8), 4, skew), "ort-cpu", kernel=False)
    names = [node.op_type for node in to_proto(module, profile="ort-cpu").graph.node]
    assert "ScatterND" in names


@pytest.mark.parametrize("profile", ["onnx", "ort-cpu"])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_any_number_of_tokens_and_experts_that_nobody_chooses(
    activation: str, profile: str
) -> None:
    tokens = Dim.of(Symbol("T", lo=1))
    module = _module((tokens,), 8, gated=True, biased=True, activation=activation, top_k=1)
    kernel = profile == "ort-cpu" and activation == "silu"
    for rows, skew in ((1, 0.0), (3, 0.0), (64, 0.0), (5, 99.0)):
        _check(module, _inputs((rows,), 8, skew), profile, kernel=kernel)
