"""Forms of linear attention that have to be equal: their largest difference, and sizes of states.

Everything runs through ONNX Runtime on generated tensors, but for what is an identity of float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_most, held
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.flops import flops_of
from regraft.ir.freeze import freeze
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from regraft.passes.linearization.place import Place
from regraft.passes.linearization.soft import newton_inverse, soft

Array = np.ndarray[Any, Any]

_B, _H, _K, _D, _E, _T = 2, 4, 2, 16, 12, 150
_APART, _KERNEL, _NEWTON, _SLOPE = 1e-5, 1e-4, 1e-12, 1.02
_LENGTHS = (16384, 65536)
"""Beside so many tokens the inverse, whose cost is the same for all, is small."""
_STEPS = 40
"""Tokens that are read one after the other."""


def _module(length: int | str, *, kv: int = _K, is_causal: bool = True) -> Module:
    """Returns attention from q, k, v as graph inputs."""
    module = Module(Graph())
    graph = module.graph
    size = Dim.of(graph.scope.symbol(length)) if isinstance(length, str) else length
    values = [
        graph.add_input(name, TensorType(DType.F32, (_B, heads, size, width)))
        for name, heads, width in (("q", _H, _D), ("k", kv, _D), ("v", kv, _E))
    ]
    made = Builder(graph).op(
        attention.attention, *values, scale=_D**-0.5, kv_groups=_H // kv,
        causal_offset=0 if is_causal else None,
    )  # fmt: skip
    graph.add_output("y", made)
    return module


def _feeds(*, kv: int = _K, length: int = _T) -> dict[str, Array]:
    rng = np.random.default_rng(10)
    return {
        name: rng.standard_normal((_B, heads, length, width)).astype(np.float32)
        for name, heads, width in (("q", _H, _D), ("k", kv, _D), ("v", kv, _E))
    }


def _linear(module: Module, options: str) -> Module:
    made = module.clone()
    regraft.apply(made, f"linearize-attention{{{options}}}", check="off")
    return made


def _run(module: Module, feeds: Mapping[str, Array]) -> Array:
    return np.asarray(OrtRunner(to_proto(module))(feeds)["y"])


def _apart(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max())


def _windows(settings: Settings) -> Iterator[Row]:
    module, feeds = _module("seq"), _feeds()
    softmax = _run(module, feeds)
    for merge in ("share", "lse", "lolcats"):
        for window in (_T, 2 * _T):
            made = _linear(module, f"window={window},merge={merge}")
            yield at_most(
                f"window of {window} over {_T} tokens against softmax, merge {merge}",
                _apart(_run(made, feeds), softmax), _APART, "",
            )  # fmt: skip


def _steps(settings: Settings) -> Iterator[Row]:
    for options in (
        "method=hedgehog", "method=t2r", "method=supra", "method=lightning",
        "window=6,merge=share", "window=6,merge=lse", "window=6,merge=lolcats",
    ):  # fmt: skip
        module = _linear(_module("seq"), options)
        feeds = _feeds(length=_STEPS)
        whole = _run(module, feeds)
        regraft.apply(module, "carry-states,canonicalize", check="off")
        freeze(module, {"seq": 1})
        run = OrtRunner(to_proto(module))
        states = {
            str(value.name): np.zeros(_static(value.shape), np.float32)
            for value in module.graph.inputs
            if value.name not in feeds
        }
        sizes, rows = {name: array.nbytes for name, array in states.items()}, []
        for place in range(_STEPS):
            found = run({**{n: x[:, :, place : place + 1] for n, x in feeds.items()}, **states})
            states = {state.input: found[state.output] for state in module.states}
            rows.append(found["y"])
        yield at_most(
            f"{_STEPS} steps in ONNX Runtime against the whole text, {options}",
            _apart(np.concatenate(rows, 2), whole), _APART, "",
        )  # fmt: skip
        after = {name: array.nbytes for name, array in states.items()}
        yield held(
            f"bytes of states stay, {options}", after == sizes, f"{sum(sizes.values())} bytes"
        )


def _static(shape: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else _B for size in shape)


def _kernels(settings: Settings) -> Iterator[Row]:
    feeds = _feeds(kv=_H)
    whole = _module(_T, kv=_H, is_causal=False)
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    products = q @ k.swapaxes(-1, -2) * _D**-0.5
    weights = (products - products.mean(-1, keepdims=True) + 1) / _T
    yield at_most(
        "InLine, linear against quadratic", _apart(_run(_linear(whole, "method=inline"), feeds),
        weights @ v), _APART, "", f"rows sum to 1 but for {abs(weights.sum(-1) - 1).max():.1e}",
    )  # fmt: skip
    x = q * _D**-0.25
    kernel = np.exp(-np.square(x[..., :, None, :] - x[..., None, :, :]).sum(-1) / 2)
    root = np.sqrt(kernel.sum(-1, keepdims=True))
    expected = kernel @ (v / root) / root
    exact = whole.clone()
    (node,) = exact.graph
    place = Place(node, 0, Builder(exact.graph))
    exact.graph.set_outputs([("y", soft(place, 0, steps=_STEPS, jitter=0.0))])
    found = np.asarray(evaluate(exact, feeds, oracle=True)["y"])
    yield at_most(
        "SOFT with all landmarks against its kernel, float64", _apart(found, expected), _KERNEL, ""
    )
    yield from _newton(whole)
    yield from _slope()


def _newton(whole: Module) -> Iterator[Row]:
    made = whole.clone()
    (node,) = made.graph
    points = np.random.default_rng(3).standard_normal((1, 1, 6, 3))
    A = np.exp(-np.square(points[..., :, None, :] - points[..., None, :, :]).sum(-1) / 2)
    value = made.graph.add_input("A", TensorType(DType.F32, A.shape))
    place = Place(node, 0, Builder(made.graph))
    made.graph.set_outputs([("y", newton_inverse(place, value, 6, _STEPS, 0.0))])
    feeds = {**_feeds(kv=_H), "A": A.astype(np.float32)}
    inverse = np.asarray(evaluate(made, feeds, oracle=True)["y"])
    product = inverse @ feeds["A"].astype(np.float64)
    yield at_most(
        f"inverse of SOFT after {_STEPS} steps, float64", _apart(product, np.eye(6)), _NEWTON, ""
    )


def _slope() -> Iterator[Row]:
    counts = []
    for length in _LENGTHS:
        made = _linear(_module(length, kv=_H, is_causal=False), "method=soft,landmarks=49")
        found = (flops_of(node) for node in made.graph)
        counts.append(sum(each for each in found if isinstance(each, int)))
    slope = float(np.log(counts[1] / counts[0]) / np.log(4))
    yield at_most(
        "SOFT with 49 landmarks, slope of operations in tokens", slope, _SLOPE, "",
        f"{counts[0]:.3g} and {counts[1]:.3g} at {_LENGTHS[0]} and {_LENGTHS[1]} tokens",
    )  # fmt: skip


def _chunks(settings: Settings) -> Iterator[Row]:
    feeds = _feeds()
    silu = {name: feeds[name] / (1 + np.exp(-feeds[name].astype(np.float64))) for name in "qk"}
    k, v = (np.repeat(x, _H // _K, axis=1) for x in (silu["k"], feeds["v"]))
    slopes = np.repeat(2.0 ** (-8.0 * np.arange(1, _K + 1) / _K), _H // _K)
    apart = np.arange(_T)[:, None] - np.arange(_T)
    decays = np.where(apart >= 0, np.exp(-slopes[:, None, None] * np.maximum(apart, 0)), 0)
    rows = (silu["q"] @ k.swapaxes(-1, -2) * _D**-0.5 * decays) @ v
    expected = rows / np.sqrt(np.square(rows).mean(-1, keepdims=True) + 1e-6)
    worst = 0.0
    sizes = (1, 7, 16, 64, 200)
    for chunk in sizes:
        made = _linear(_module("seq"), "method=lightning")
        for node in made.graph:
            if node.op is linear_attention:
                node.attrs = {**node.attrs, "chunk_size": chunk}
        worst = max(worst, _apart(_run(made, feeds), expected))
    yield at_most(
        f"lightning in chunks of {', '.join(map(str, sizes))} against quadratic", worst, _APART, ""
    )


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("equal-windows", "a window over everything is softmax", _windows),
    Measurement("equal-steps", "one token after the other is the whole text", _steps),
    Measurement("equal-kernels", "InLine and SOFT are what they are defined as", _kernels),
    Measurement("equal-chunks", "lightning attention in chunks", _chunks),
)
