"""CPU time of linear attention in ONNX Runtime, beside softmax attention.

One thread, interleaved, one process, default session options; outputs are bound once, so that
allocating them is in no figure. The first bar holds the recurrence against causal softmax
attention written out in standard operators; the second a complete mixer against the fastest form
that `ort-cpu` has for causal softmax attention, both from [B, T, heads * size] to the same. The
mixer has features of every query and key, their sum as normalizer, and a window of softmax over 32
positions beside, in equal parts, as Liger has it (Lan et al., 2025; the half of each is a factor of
the layer behind): features are the softmax over a head's channels, which has no parameters. Those
of Hedgehog, of twice the size, are shown as well, and both at heads of 64. The third bar holds a
step of decoding with the state after 16,384 positions against one after 128.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx.legalize import SITES
from regraft.backends.onnx.legalize.costs import shipped_table
from regraft.backends.onnx.legalize.legalizer import OrtLegalizer
from regraft.backends.onnx.save import to_proto
from regraft.ir.builder import Builder
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, attention, linear_attention, reshaping
from regraft.ir.rewrite import rewrite
from regraft.ir.types import DType, TensorType

HEADS, SIZE, WINDOW = 12, 32, 32
"""Heads of the small encoders and decoders that run on a CPU: 384 channels."""

WIDER = 64
"""Heads of models with 768 channels."""

LENGTHS = (512, 2048, 4096)
KERNEL_BARS = (3.0, 12.0, 25.0)
MIXER_BARS = (1.5, 4.0, 8.0)
CONTEXTS = (128, 16_384)
DECODE_BAR = 1.1

_ROUNDS, _DECODE_ROUNDS, _TRIALS = 11, 101, 3
"""Rounds of whole sequences take up to a second, steps some microseconds."""

_TURN_S = 5e-3

Array = np.ndarray[Any, Any]
Make = Callable[[Builder, Value, Value, Value], Value]


def _softmax(b: Builder, q: Value, k: Value, v: Value) -> Value:
    return b.op(attention.attention, q, k, v, scale=_scale(q), causal_offset=0)


def _recurrence(b: Builder, q: Value, k: Value, v: Value) -> Value:
    return b.op(linear_attention.linear_attention, q, k, v, rule="linear", scale=_scale(q))


def _scale(q: Value) -> float:
    return 1 / math.sqrt(int(str((q.shape or ())[3])))


def _mixer(feature_map: str) -> Make:
    """Returns what adds up features over their sum, and a window of softmax."""

    def make(b: Builder, q: Value, k: Value, v: Value) -> Value:
        far = b.op(
            linear_attention.linear_attention, q, k, v, rule="linear", scale=1.0,
            feature_map=feature_map, normalizer="sum",
        )  # fmt: skip
        near = b.op(
            attention.attention, q, k, v, scale=_scale(q), causal_offset=0, window=(WINDOW, 0)
        )
        return b.op(arithmetic.add, far, near)

    return make


def _flat(make: Make, length: int, size: int = SIZE) -> Module:
    """Returns a module from and to [1, T, heads * size]."""
    module = Module(Graph())
    b = Builder(module.graph)
    whole = TensorType(DType.F32, (1, length, HEADS * size))
    parts = []
    for name in "qkv":
        flat = module.graph.add_input(name, whole)
        split = b.op(reshaping.reshape, flat, shape=(1, length, HEADS, size))
        parts.append(b.op(reshaping.transpose, split, perm=(0, 2, 1, 3)))
    lined = b.op(reshaping.transpose, make(b, *parts), perm=(0, 2, 1, 3))
    merged = b.op(reshaping.reshape, lined, shape=(1, length, HEADS * size))
    module.graph.add_output("y", merged)
    return module


def _call(module: Module, profile: str, feeds: Mapping[str, Array]) -> Callable[[], list[Array]]:
    """Returns a call of the module as a target runs it."""
    regraft.apply(module, f"canonicalize,legalize{{target={profile}}}", check="off")
    return _runs(to_proto(module, profile=profile), feeds)


def _runs(proto: Any, feeds: Mapping[str, Array]) -> Callable[[], list[Array]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    first = session.run(None, dict(feeds))
    kept = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(each)) for each in first]
    for output, value in zip(session.get_outputs(), kept, strict=True):
        binding.bind_ortvalue_output(output.name, value)

    def run() -> list[Array]:
        session.run_with_iobinding(binding)
        return [value.numpy() for value in kept]

    return run


def _inputs(*shape: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) / 4 for name in "qkv"}


def _kernel(settings: Settings) -> Iterator[Row]:
    for length, bar in zip(LENGTHS, KERNEL_BARS, strict=True):
        feeds = _inputs(1, length, HEADS * SIZE)
        written = _flat(_softmax, length)
        # standard operators of an opset without Attention: products, mask, softmax
        regraft.apply(written, "canonicalize", check="off")
        calls = [
            _runs(to_proto(written, opset=17), feeds),
            _call(_flat(_recurrence, length), "ort-cpu", feeds),
        ]
        times = interleaved(calls, _ROUNDS, clock=time.thread_time)
        found = ratio(*times)
        yield at_least(
            f"causal softmax written out / linear attention, {length} tokens", found.median, bar,
            "x", f"{found}; {_ms(times)}",
        )  # fmt: skip


def _forms(length: int, size: int, feeds: Mapping[str, Array]) -> list[Callable[[], list[Array]]]:
    """Returns calls of every form that `ort-cpu` has for causal softmax attention."""
    chosen = _call(_flat(_softmax, length, size), "ort-cpu", feeds)
    found = [chosen]
    for form in FORMS:
        module = _flat(_softmax, length, size)
        regraft.apply(module, "canonicalize", check="off")
        legal = _forced(module, form)
        if legal is not None:
            found.append(_runs(to_proto(legal, profile="ort-cpu"), feeds))
    return found


FEATURES = ("softmax", "hedgehog")
FORMS = ("decomposed", "native", "flat", "multi_head", "group_query")


def _forced(module: Module, form: str) -> Module | None:
    """Returns the module with attention in one form, None where that form is not offered."""
    table = shipped_table("ort-cpu")
    if table is None:
        raise RuntimeError("no cost table is shipped for ort-cpu")
    legalizer = OrtLegalizer(table, SITES, forced={"attention": form})
    run = legalizer.start(module, {}, None, {})
    rewrite(module, run.rules)
    regraft.apply(module, "canonicalize", check="off")
    module.level = "ort-cpu"
    return module


def _mixers(settings: Settings) -> Iterator[Row]:
    for size in (SIZE, WIDER):
        for length, bar in zip(LENGTHS, MIXER_BARS, strict=True):
            feeds = _inputs(1, length, HEADS * size)
            forms = _forms(length, size, feeds)
            trial = interleaved(forms, _TRIALS, clock=time.thread_time)
            best = forms[min(range(len(forms)), key=lambda i: sorted_middle(trial[i]))]
            mixers = [
                _call(_flat(_mixer(name), length, size), "ort-cpu", feeds) for name in FEATURES
            ]
            times = interleaved([best, *mixers], _ROUNDS, clock=time.thread_time)
            for name, mixer in zip(FEATURES, times[1:], strict=True):
                found = ratio(times[0], mixer)
                what = (
                    f"best softmax form / mixer of {name} features with window {WINDOW}, "
                    f"{length} tokens, {HEADS} heads of {size}"
                )
                note = f"{found}; {_ms([times[0], mixer])}"
                if (name, size) == (FEATURES[0], SIZE):
                    yield at_least(what, found.median, bar, "x", note)
                else:
                    yield shown(what, found.median, "x", note)


def sorted_middle(seconds: list[float]) -> float:
    """Returns the median of a call's times."""
    return sorted(seconds)[len(seconds) // 2]


def _ms(times: list[list[float]]) -> str:
    return " / ".join(f"{1e3 * sorted_middle(each):.2f}" for each in times) + " ms"


def _decode(settings: Settings) -> Iterator[Row]:
    calls, states = [], []
    for context in CONTEXTS:
        prefill = _stateful(context)
        feeds = _inputs(1, HEADS, context, SIZE)
        state = np.zeros((1, HEADS, 2 * SIZE, SIZE + 1), np.float32)
        regraft.apply(prefill, "canonicalize,legalize{target=ort-cpu}", check="off")
        given = {**feeds, "state": state}
        run = _runs(to_proto(prefill, profile="ort-cpu"), given)
        last = run()[1].copy()  # what a run returns lies in memory that goes with it
        step = {**_inputs(1, HEADS, 1, SIZE), "state": last}
        calls.append(_call(_stateful(1), "ort-cpu", step))
        states.append(last.nbytes)
    times = interleaved(calls[::-1], _DECODE_ROUNDS, min_turn_s=_TURN_S, clock=time.thread_time)
    found = ratio(*times)
    yield at_most(
        "decoding after 16,384 positions / after 128", found.median, DECODE_BAR, "x",
        f"{found}; {_ms(times)}",
    )  # fmt: skip
    yield at_most(
        "bytes of state after 16,384 positions / after 128", states[1] / states[0], 1.0, "x",
        f"{states[1]} bytes",
    )  # fmt: skip


def _stateful(length: int) -> Module:
    """Returns linear attention with its state as input and output."""
    module = Module(Graph())
    b, graph = Builder(module.graph), module.graph
    whole = TensorType(DType.F32, (1, HEADS, length, SIZE))
    q, k, v = (graph.add_input(name, whole) for name in "qkv")
    state = graph.add_input("state", TensorType(DType.F32, (1, HEADS, 2 * SIZE, SIZE + 1)))
    made = b.multi(
        linear_attention.linear_attention, q, k, v, state, rule="linear", scale=1.0,
        feature_map="hedgehog", normalizer="sum", epsilon=1e-6,
    )  # fmt: skip
    for name, value in zip(("y", "new_state"), made, strict=True):
        graph.add_output(name, value)
    return module


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("kernel", "the recurrence against causal softmax written out", _kernel),
    Measurement("mixer", "feature map, normalizer, window against the best softmax", _mixers),
    Measurement("decode", "a step of decoding after a long context", _decode),
)
