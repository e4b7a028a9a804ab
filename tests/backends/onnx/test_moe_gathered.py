"""Experts that compute their own tokens alone, on ONNX Runtime, against evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, Symbol
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import linalg
from regraft.ir.ops.moe import moe
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight

E, F, D, R = 5, 6, 4, 3
RNG = np.random.default_rng(0)
SHAPES = {
    "up": (E, F, D), "down": (E, R, F), "gate": (E, F, D), "up_bias": (E, F), "down_bias": (E, R),
    "gate_bias": (E, F), "score_bias": (E,), "weight_gain": (E,),
}  # fmt: skip


def _module(given: tuple[str, ...], **attrs: Any) -> tuple[Module, dict[str, np.ndarray]]:
    """Returns a module with one operator, dynamic tokens, and its weights as inputs."""
    module = Module(Graph())
    graph = module.graph
    tokens = Dim.of(graph.scope.symbol("T"))
    values = [
        graph.add_input(name, TensorType(DType.F32, (tokens, size)))
        for name, size in (("x", D), ("router", E))
    ]
    arrays = {}
    for name, shape in SHAPES.items():
        if name not in given:
            values.append(None)
            continue
        arrays[name] = RNG.standard_normal(shape).astype(np.float32)
        values.append(graph.add_input(name, TensorType(DType.F32, shape)))
    if attrs.get("widths"):
        for expert, width in enumerate(attrs["widths"]):
            arrays["down"][expert, :, width:] = 0
    while values[-1] is None:
        values.pop()
    node = graph.create(moe, values, attrs)
    graph.add_output("y", node.output)
    return module, arrays


@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize(
    ("given", "attrs"),
    [
        ((), {"top_k": 2, "activation": "gelu"}),
        (("gate",), {"top_k": 1, "activation": "gelu_tanh", "renormalize": True}),
        (tuple(SHAPES), {"top_k": 3, "scoring": "sigmoid", "activation": "relu2"}),
        (("gate", "weight_gain"), {"top_k": 5, "activation": "silu", "routed_scale": 1.5}),
        (("up_bias",), {"top_k": 2, "activation": "gelu", "widths": (2, 6, 1, 4, 3)}),
        (("gate",), {"top_k": 2, "select": "expert_choice", "capacity": 1.0}),
        (("down_bias",), {"top_k": 2, "capacity": 0.5, "activation": "relu"}),
        (("gate", "up_bias"), {"top_k": 2, "weigh_input": True, "scoring": "sigmoid"}),
        (("gate",), {"top_k": 5, "scoring": "given", "limit": 0.7, "up_offset": 1.0}),
        (("gate",), {"top_k": 2, "limit": 0.7, "bounds": "clip_after", "gate_limit": 0.4}),
        (("gate",), {"top_k": 2, "limit": 0.7, "bounds": "soft", "gate_limit": 0.4}),
        (("gate", "down_bias"), {"top_k": 2, "norm_epsilon": 0.1}),
    ],
    ids=str,
)
def test_gathered_experts_compute_what_evaluation_does(
    given: tuple[str, ...], attrs: dict[str, Any], tokens: int
) -> None:
    module, arrays = _module(("up", "down", *given), **attrs)
    sample = {
        "x": RNG.standard_normal((tokens, D)).astype(np.float32),
        "router": RNG.standard_normal((tokens, E)).astype(np.float32),
        **arrays,
    }
    proto = to_proto(module, profile="ort-cpu", opset=18)
    ops = [node.op_type for node in proto.graph.node]
    assert "NonZero" in ops
    assert "MoE" not in ops
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, sample)
    want = evaluate(module, sample)["y"]
    # sums of a few dozen products
    assert np.abs(got - want).max() <= 64 * np.finfo(np.float32).eps * max(1, np.abs(want).max())


def test_an_expert_that_nobody_chooses_computes_no_row() -> None:
    module, arrays = _module(("up", "down"), top_k=1, activation="gelu")
    router = np.zeros((7, E), np.float32)
    router[:, 3] = 9
    sample = {"x": RNG.standard_normal((7, D)).astype(np.float32), "router": router, **arrays}
    proto = to_proto(module, profile="ort-cpu", opset=18)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, sample)
    want = evaluate(module, sample)["y"]
    assert np.abs(got - want).max() <= 64 * np.finfo(np.float32).eps * np.abs(want).max()


def test_what_gathers_is_read_back_as_experts(tmp_path: Path) -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", TensorType(DType.F32, (Dim.of(Symbol("T", lo=1)), D)))
    made = {name: b.weight(name, ArrayWeight(_draw(*SHAPES[name]))) for name in _READ_BACK}
    scores = b.op(linalg.matmul, x, b.weight("router", ArrayWeight(_draw(D, E))))
    square = b.weight("last", ArrayWeight(_draw(E, D, F)))
    y = b.op(
        moe, x, scores, made["up"], square, made["gate"], made["up_bias"], None, made["gate_bias"],
        top_k=2, renormalize=True, activation="gelu",
    )  # fmt: skip
    graph.set_outputs([("y", y)])
    module = Module(graph, "gathered")
    regraft.save(module, tmp_path / "gathered.onnx", target="ort-cpu")
    read = regraft.load(tmp_path / "gathered.onnx")
    regraft.apply(read, "canonicalize,fuse")
    (node,) = (node for node in read.graph if node.op is moe)
    assert (node.attrs["activation"], node.attrs["scoring"]) == ("gelu", "topk_softmax")
    sample = {"x": RNG.standard_normal((7, D)).astype(np.float32)}
    got, want = (evaluate(each, sample)["y"] for each in (read, module))
    assert np.abs(got - want).max() <= 64 * np.finfo(np.float32).eps * np.abs(want).max()


_READ_BACK = ("up", "gate", "up_bias", "gate_bias")


def _draw(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 2).astype(np.float32)
