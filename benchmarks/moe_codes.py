"""Experts in 4 and 8 bits: ONNX Runtime's QMoE against the dequantized weights, and its time.

Both files have the same codes: one keeps them, one has the floats that they stand for.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_most, held
from benchmarks.moe_kernels import layer
from regraft.backends.onnx.save import to_proto
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.protocol import Context
from regraft.passes.quantization.quantize import Quantize

_BAR = 1e-5
_INT8_INPUTS = 3e-2
"""The kernel rounds what both layers read to 8 bits, too."""
_EXPERTS, _CHOICES = (2, 8, 16), (1, 2, 8)
_TOKENS = 16
_TIMED = (256, 512)
_ROUNDS = 41


def _coded(weights: str, rows: int, experts: int, sizes: tuple[int, int], **attrs: Any) -> Module:
    module = layer((rows,), experts, channels=sizes[0], hidden=sizes[1], **attrs)
    Quantize(weights=weights).run(module, Context())
    return module


def _sample(rows: int, experts: int, channels: int) -> dict[str, Any]:
    rng = np.random.default_rng([rows, experts])
    return {
        "x": rng.standard_normal((rows, channels)).astype(np.float32),
        "scores": rng.standard_normal((rows, experts)).astype(np.float32),
    }


def _session(module: Module, level: int | None = None) -> Any:
    """Returns a session and the kinds of its nodes, `level` in place of the kernel's accuracy."""
    import onnxruntime as ort

    legal = module.clone()
    regraft.apply(legal, "legalize{target=ort-cpu}", check="off")
    proto = to_proto(legal, profile="ort-cpu")
    for node in proto.graph.node:
        for attr in node.attribute:
            if level is not None and attr.name == "accuracy_level":
                attr.i = level
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    kinds = {node.op_type for node in proto.graph.node}
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ), kinds


def _right() -> Iterator[Row]:
    worst = {("int4", 0): 0.0, ("int4", 4): 0.0, ("int8", 4): 0.0}
    count, taken = 0, True
    for how, gated, experts in itertools.product(worst, (False, True), _EXPERTS):
        weights, level = how
        for idx, top_k in enumerate(k for k in _CHOICES if k <= experts):
            scoring = ("softmax", "topk_softmax", "sigmoid")[(experts + idx) % 3]
            attrs: dict[str, Any] = {
                "gated": gated, "biased": bool(idx % 2), "top_k": top_k, "scoring": scoring,
                "renormalize": idx == 1, "activation": "silu",
            }  # fmt: skip
            module = _coded(weights, 7, experts, (64, 96), **attrs)
            sample = _sample(7, experts, 64)
            want = evaluate(module, sample, oracle=True)["y"]
            session, kinds = _session(module, level)
            (got,) = session.run(None, sample)
            worst[how] = max(worst[how], float(np.abs(got - want).max() / abs(want).max()))
            taken &= "QMoE" in kinds
            count += 1
    yield held("codes: the kernel takes them", taken, f"{count} layers, E of 2 to 16, k of 1 to 8")
    note = "against the weights that the codes stand for, in f64"
    yield at_most(
        "codes: `QMoE` of int4 with inputs in float", worst["int4", 0], _BAR, "relative", note
    )
    for weights in ("int4", "int8"):
        yield at_most(
            f"codes: `QMoE` of {weights}", worst[weights, 4], _INT8_INPUTS, "relative",
            f"{note}; the kernel rounds inputs to 8 bits",
        )  # fmt: skip


def _fast() -> Iterator[Row]:
    sample = _sample(_TOKENS, 8, _TIMED[0])
    attrs: dict[str, Any] = {"gated": True, "biased": False, "top_k": 2, "renormalize": True}
    plain, _ = _session(layer((_TOKENS,), 8, channels=_TIMED[0], hidden=_TIMED[1], **attrs))
    for weights in ("int4", "int8"):
        coded, _ = _session(_coded(weights, _TOKENS, 8, _TIMED, **attrs))
        ratios = []
        for _ in range(_ROUNDS):
            spent = []
            for session in (plain, coded):
                start = time.perf_counter()
                session.run(None, sample)
                spent.append(time.perf_counter() - start)
            ratios.append(spent[1] / spent[0])
        yield at_most(
            f"codes: time of {weights} against floats, {_TOKENS} tokens",
            float(np.median(ratios[3:])), 1.0, "ratio",
            f"8 gated experts of {_TIMED[0]} and {_TIMED[1]} channels, one thread; floats in the "
            "fastest form",
        )  # fmt: skip


def _codes(settings: Settings) -> Iterator[Row]:
    yield from _right()
    yield from _fast()


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("codes", "experts in 4 and 8 bits in ONNX Runtime", _codes),
)
