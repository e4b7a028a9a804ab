"""The operator `moe` in ONNX Runtime against PyTorch: the kernel, and standard operators.

One layer at a time over numbers of experts, choices, activations, biases, and shapes of tokens;
PyTorch computes with the module that `to_torch` makes of the same layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, Row, Settings, at_most, held, shown
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, Symbol
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role

_CHANNELS, _HIDDEN = 32, 48
_BAR = 1e-5
_EXPERTS = (2, 4, 8, 16, 64)
_CHOICES = range(1, 9)
_PLAIN = ("relu", "silu", "gelu_tanh", "gelu", "relu2")
_GATED = ("silu", "quick_gelu", "gelu", "gelu_tanh")
_KERNEL = {False: {"relu", "silu", "gelu_tanh"}, True: {"silu", "quick_gelu"}}
_ROUTING = (("softmax", False), ("softmax", True), ("topk_softmax", False), ("sigmoid", True))


def layer(
    shape: tuple[Any, ...],
    experts: int,
    *,
    gated: bool,
    biased: bool,
    channels: int = _CHANNELS,
    hidden: int = _HIDDEN,
    **attrs: Any,
) -> Module:
    """Returns a module of one layer of experts that reads tokens `x` and `scores`."""
    rng = np.random.default_rng(experts)
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", TensorType(DType.F32, (*shape, channels)))
    scores = graph.add_input("scores", TensorType(DType.F32, (*shape, experts)))

    def parameter(name: str, *sizes: int) -> Any:
        array = (rng.standard_normal(sizes) / 4).astype(np.float32)
        return b.weight(name, ArrayWeight(array), Role.PARAM)

    up = parameter("up", experts, hidden, channels)
    down = parameter("down", experts, channels, hidden)
    gate = parameter("gate", experts, hidden, channels) if gated else None
    biases = (
        parameter("up_bias", experts, hidden), parameter("down_bias", experts, channels),
        parameter("gate_bias", experts, hidden) if gated else None,
    ) if biased else ()  # fmt: skip
    graph.set_outputs([("y", b.op(moe.moe, x, scores, up, down, gate, *biases, **attrs))])
    return Module(graph, "moe")


def _inputs(rows: tuple[int, ...], experts: int, skew: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng([experts, *rows])
    scores = rng.standard_normal((*rows, experts)).astype(np.float32)
    scores[..., 0] += skew
    return {"x": rng.standard_normal((*rows, _CHANNELS)).astype(np.float32), "scores": scores}


def _error(module: Module, profile: str, inputs: list[dict[str, Any]]) -> tuple[float, bool]:
    """Returns the largest difference from PyTorch, relative, and whether the kernel ran."""
    import torch

    import regraft

    proto = to_proto(module, profile=profile)
    runner, net = OrtRunner(proto), regraft.to_torch(module)
    worst = 0.0
    for each in inputs:
        with torch.no_grad():
            want = net(torch.from_numpy(each["x"]), torch.from_numpy(each["scores"]))
        want = (want if isinstance(want, torch.Tensor) else next(iter(want.values()))).numpy()
        worst = max(worst, float(np.abs(runner(each)["y"] - want).max() / np.abs(want).max()))
    return worst, any(node.op_type == "MoE" for node in proto.graph.node)


def _kernels(settings: Settings) -> Iterator[Row]:
    worst = {True: 0.0, False: 0.0}
    count = {True: 0, False: 0}
    wrong: list[str] = []
    for experts, top_k, gated in itertools.product(_EXPERTS, _CHOICES, (False, True)):
        if top_k > experts:
            continue
        names = _GATED if gated else _PLAIN
        for idx, activation in enumerate(names):
            number = experts + top_k + idx
            scoring, again = _ROUTING[number % len(_ROUTING)]
            rows = ((9,), (2, 5))[number % 2]
            module = layer(
                rows, experts, gated=gated, biased=bool(number // 2 % 2), top_k=top_k,
                scoring=scoring, renormalize=again, activation=activation,
            )  # fmt: skip
            error, kernel = _error(module, "ort-cpu", [_inputs(rows, experts)])
            worst[kernel] = max(worst[kernel], error)
            count[kernel] += 1
            if kernel is not (activation in _KERNEL[gated]):
                wrong.append(f"{activation}, gated={gated}")
    yield at_most("kernel `MoE` against PyTorch", worst[True], _BAR, "relative",
                  f"{count[True]} layers: E of 2 to 64, k of 1 to 8")  # fmt: skip
    yield at_most("standard operators against PyTorch", worst[False], _BAR, "relative",
                  f"{count[False]} layers, erf-GELU among them")  # fmt: skip
    yield held("the kernel runs what it computes, and nothing else", not wrong, "; ".join(wrong))
    yield from _portable()


def _portable() -> Iterator[Row]:
    """Any number of tokens, one token, experts that nobody chooses."""
    worst = 0.0
    for activation, profile in itertools.product(("silu", "gelu"), ("onnx", "ort-cpu")):
        tokens = Dim.of(Symbol("T", lo=1))
        module = layer((tokens,), 8, gated=True, biased=True, activation=activation, top_k=1)
        inputs = [_inputs((1,), 8), _inputs((3,), 8), _inputs((64,), 8), _inputs((5,), 8, 99.0)]
        worst = max(worst, _error(module, profile, inputs)[0])
    yield at_most("dynamic tokens, one token, experts without tokens", worst, _BAR, "relative")
    yield shown("profiles of these", 2, "profiles")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("kernels", "layers of experts in ONNX Runtime against PyTorch", _kernels),
)
