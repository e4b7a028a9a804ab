"""`linearize-attention`: replacements are what they are defined as, and softmax at their limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import attention, linalg
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight
from regraft.passes.linearization.methods import METHODS
from regraft.passes.linearization.place import Place
from regraft.passes.linearization.soft import newton_inverse, soft

Array = np.ndarray[Any, Any]

B, H, K, T, D, E = 2, 4, 2, 12, 8, 6
RNG = np.random.default_rng(3)
CAUSAL = {"causal_offset": 0}
WHOLE: dict[str, Any] = {}


def _module(
    attrs: Mapping[str, Any], *, kv: int = K, length: int | str = T, mask: tuple[int, ...] = ()
) -> Module:
    """Returns attention from q, k, v (and a mask) as graph inputs."""
    module = Module(Graph())
    graph = module.graph
    size = Dim.of(graph.scope.symbol(length)) if isinstance(length, str) else length
    values = [
        graph.add_input(name, TensorType(DType.F32, (B, heads, size, width)))
        for name, heads, width in (("q", H, D), ("k", kv, D), ("v", kv, E))
    ]
    operands: list[Value | None] = list(values)
    if mask:
        operands.append(graph.add_input("mask", TensorType(DType.BOOL, mask)))
    made = Builder(graph).op(
        attention.attention, *operands, scale=D**-0.5, kv_groups=H // kv, **attrs
    )
    graph.add_output("y", made)
    return module


def _feeds(*, kv: int = K, length: int = T, scale: float = 1.0) -> dict[str, Array]:
    return {
        name: (scale * RNG.standard_normal((B, heads, length, width))).astype(np.float32)
        for name, heads, width in (("q", H, D), ("k", kv, D), ("v", kv, E))
    }


def _rewritten(module: Module, options: str) -> Module:
    made = module.clone()
    regraft.apply(made, f"linearize-attention{{{options}}}", check="off")
    return made


def _run(module: Module, feeds: Mapping[str, Array]) -> Array:
    """Returns the result after asserting that ONNX Runtime gives it too."""
    own = np.asarray(evaluate(module, feeds)["y"])
    there = np.asarray(OrtRunner(to_proto(module))(feeds)["y"])
    np.testing.assert_allclose(own, there, atol=1e-4)
    return own


@pytest.mark.parametrize("merge", ["lolcats", "lse", "share"])
@pytest.mark.parametrize("method", ["hedgehog", "t2r", "elu", "exp", "taylor"])
def test_a_window_over_the_whole_sequence_is_softmax(method: str, merge: str) -> None:
    module, feeds = _module(CAUSAL), _feeds()
    made = _rewritten(module, f"method={method},window={T},merge={merge}")
    assert any(node.op is hybrid_attention for node in made.graph)
    np.testing.assert_allclose(_run(made, feeds), _run(module, feeds), atol=1e-5)


@pytest.mark.parametrize("length", [T, "T"])
@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if n not in ("inline", "soft")])
def test_later_tokens_change_nothing_before_them(method: str, length: int | str) -> None:
    window = "window=3" if METHODS[method].has_window else "window=0"
    made = _rewritten(_module(CAUSAL, length=length), f"method={method},{window}")
    feeds = _feeds()
    whole = _run(made, feeds)
    for name in ("k", "v"):
        feeds[name][:, :, -1] += 1
    again = _run(made, feeds)
    np.testing.assert_allclose(again[:, :, :-1], whole[:, :, :-1], atol=1e-5)
    assert np.abs(again[:, :, -1] - whole[:, :, -1]).max() > 1e-3


@pytest.mark.parametrize("method", ["hedgehog", "t2r", "elu", "exp", "taylor"])
@pytest.mark.parametrize("window", [0, 3])
def test_padding_has_no_weight(method: str, window: int) -> None:
    made = _rewritten(_module(CAUSAL, mask=(B, 1, 1, T)), f"method={method},window={window}")
    mask = np.ones((B, 1, 1, T), bool)
    mask[1, ..., :4] = False
    feeds = {**_feeds(), "mask": mask}
    whole = _run(made, feeds)
    for name in ("k", "v"):
        feeds[name][1, :, :4] = 50
    np.testing.assert_allclose(_run(made, feeds), whole, atol=1e-5)


def test_inline_is_its_quadratic_form_and_rows_sum_to_one() -> None:
    """Weights: (q.k - mean of q.k + 1) / n; unlike plain linear attention, q and 2 q differ."""
    made, feeds = _rewritten(_module(WHOLE, kv=H), "method=inline"), _feeds(kv=H)
    out = _run(made, feeds)
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    products = q @ k.swapaxes(-1, -2) * D**-0.5
    weights = (products - products.mean(-1, keepdims=True) + 1) / T
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(out, weights @ v, atol=1e-5)  # the local residual begins at 0
    twice = _run(made, {**feeds, "q": 2 * feeds["q"]})
    assert np.abs(twice - out).max() > 1e-2
    plain = _rewritten(_module(WHOLE, kv=H), "method=t2r")
    same = _run(plain, {**feeds, "q": 2 * feeds["q"]})
    np.testing.assert_allclose(same, _run(plain, feeds), atol=1e-3)  # its epsilon apart


def test_inline_learns_from_the_neighbours_in_the_image() -> None:
    tokens, module = 10, _module(WHOLE, kv=H, length=10)  # 1 + 3 x 3
    made, feeds = _rewritten(module, "method=inline"), _feeds(kv=H, length=10)
    before = _run(made, feeds)
    name = "attention.0.local_out"
    factors = np.zeros((H, D, 9 * E), np.float32)
    factors[:, :, 5 * E : 6 * E] = 1  # the neighbour to the left of (0, 1) in shifts (row, column)
    made.weights.set(name, ArrayWeight(factors))
    change = _run(made, feeds) - before
    assert not np.abs(change[:, :, 0]).any()  # the class token has no neighbours
    mean = feeds["q"].mean(2, keepdims=True)
    gelu = 0.5 * mean * (1 + np.vectorize(math.erf)(mean / 2**0.5))
    image = feeds["v"][:, :, 1:].reshape(B, H, 3, 3, E)
    left = np.zeros_like(image)
    left[:, :, :, 1:] = image[:, :, :, :-1]
    expected = left.reshape(B, H, 9, E) * gelu.sum(-1, keepdims=True)
    np.testing.assert_allclose(change[:, :, 1:], expected, atol=1e-4)
    assert tokens == change.shape[2]


def test_soft_with_all_landmarks_reproduces_its_kernel() -> None:
    module = _module(WHOLE, kv=H)
    graph = module.graph
    (node,) = (each for each in graph if each.op is attention.attention)
    place = Place(node, 0, Builder(graph))
    graph.set_outputs([("y", soft(place, 0, steps=40, jitter=0.0))])
    feeds = _feeds(kv=H, scale=2.0)
    out = np.asarray(evaluate(module, feeds, oracle=True)["y"])
    x = feeds["q"].astype(np.float64) * D**-0.25
    kernel = np.exp(-np.square(x[..., :, None, :] - x[..., None, :, :]).sum(-1) / 2)
    root = np.sqrt(kernel.sum(-1, keepdims=True))
    np.testing.assert_allclose(out, kernel @ (feeds["v"] / root) / root, atol=1e-4)


def test_newton_inverse_is_exact_after_forty_steps() -> None:
    module = _module(WHOLE, kv=H)
    (node,) = module.graph
    place = Place(node, 0, Builder(module.graph))
    points = RNG.standard_normal((1, 1, 6, 3))
    apart = np.square(points[..., :, None, :] - points[..., None, :, :]).sum(-1)
    A = np.exp(-apart / 2).astype(np.float32)
    value = module.graph.add_input("A", TensorType(DType.F32, A.shape))
    module.graph.set_outputs([("y", newton_inverse(place, value, 6, 40, 0.0))])
    feeds = {**_feeds(kv=H), "A": A}
    found = np.asarray(evaluate(module, feeds, oracle=True)["y"])
    np.testing.assert_allclose(found @ A, np.eye(6)[None, None], atol=1e-9)


def test_soft_pools_landmarks() -> None:
    made = _rewritten(_module(WHOLE, kv=H), "method=soft,landmarks=4")
    out = _run(made, _feeds(kv=H))
    assert out.shape == (B, H, T, E)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("chunk", [1, 2, 5, 12, 64])
def test_lightning_in_chunks_is_its_quadratic_form(chunk: int) -> None:
    made, feeds = _rewritten(_module(CAUSAL), "method=lightning"), _feeds()
    for node in made.graph:
        if node.op is linear_attention:
            node.attrs = {**node.attrs, "chunk_size": chunk}
    out = _run(made, feeds)
    silu = {name: feeds[name] / (1 + np.exp(-feeds[name])) for name in "qk"}
    k, v = (np.repeat(x, H // K, axis=1) for x in (silu["k"], feeds["v"]))
    slopes = np.repeat(2.0 ** (-8.0 * np.arange(1, K + 1) / K), H // K)
    apart = np.arange(T)[:, None] - np.arange(T)
    decays = np.where(apart >= 0, np.exp(-slopes[:, None, None] * np.maximum(apart, 0)), 0)
    made_rows = (silu["q"] @ k.swapaxes(-1, -2) * D**-0.5 * decays) @ v
    unit = made_rows / np.sqrt(np.square(made_rows).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, unit, atol=1e-4)


def test_a_model_of_its_layers_is_linearized_where_it_is_told() -> None:
    module = Module(Graph())
    graph, b = module.graph, Builder(module.graph)
    x = graph.add_input("x", TensorType(DType.F32, (1, H, T, D)))
    weights = b.constant(RNG.standard_normal((D, D)).astype(np.float32))
    for _ in range(3):
        y = b.op(linalg.matmul, x, weights)
        x = b.op(attention.attention, y, y, x, scale=1.0, causal_offset=0)
    graph.add_output("y", x)
    regraft.apply(module, "linearize-attention{method=elu,layers=[0,2]}", check="off")
    kinds = [n.op.name for n in module.graph if n.op in (attention.attention, linear_attention)]
    assert kinds == ["linear_attention", "attention", "linear_attention"]


@pytest.mark.parametrize(
    ("attrs", "mask", "reason"),
    [
        ({"causal_offset": 3}, (), "a cache lies before its first query"),
        ({"causal_offset": 0, "window": (4, 0)}, (), "it sees a window already"),
        ({}, (), "it is not causal, and the window"),
        (CAUSAL, (B, 1, T, T), "its mask or bias differs from query to query"),
        (WHOLE, (B, H, T, T), "its mask or bias differs from query to query"),
    ],
)
def test_what_stays_softmax_says_why(
    attrs: dict[str, Any], mask: tuple[int, ...], reason: str
) -> None:
    module = _module(attrs, mask=mask)
    (record,) = regraft.apply(module, "linearize-attention{window=3}", check="off")
    assert record.stats["linearized"] == 0
    assert reason in record.skipped[0].reason
    assert any(node.op is attention.attention for node in module.graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=hedghog", "`hedghog` is not known"),
        ("method=supra,window=4", "method `supra` has none"),
        ("loss=hybrid", "`hybrid` needs a `window`"),
        ("layers=[7]", "no layer 7"),
        ("method=window", "method `window` needs one"),
        ("steps=5", "there is no data"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        regraft.apply(_module(CAUSAL), f"linearize-attention{{{options}}}", check="off")
