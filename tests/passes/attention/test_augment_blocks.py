"""Series of activations and augmented shortcuts: nothing at first, little to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.inspection import inspect_module
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight

Array = np.ndarray[Any, Any]

CHANNELS, HEADS = 256, 4


def _block() -> Module:
    """Returns one pre-norm layer of attention and a feed-forward block."""
    C = CHANNELS
    names = {
        "q": (C, C),
        "k": (C, C),
        "v": (C, C),
        "o": (C, C),
        "up": (C, 4 * C),
        "down": (4 * C, C),
    }
    lines = ['module "block"', "symbol S"]
    lines += [
        f"weight @{n} : f32[{a}, {b}] role=param = random({i})"
        for i, (n, (a, b)) in enumerate(names.items())
    ]
    lines += [f"weight @gain : f32[{C}] role=param = random(9)"]
    lines += [f"graph(%x : f32[1, S, {C}]) {{"]
    lines += [f"  %{n} = weight @{n}" for n in (*names, "gain")]
    lines += ["  %n = rms_norm(%x, %gain)"]
    for n in "qkv":
        lines += [
            f"  %{n}f = matmul(%n, %{n})",
            f"  %{n}s = reshape(%{n}f) {{shape = [1, S, {HEADS}, {C // HEADS}]}}",
            f"  %{n}h = transpose(%{n}s) {{perm = [0, 2, 1, 3]}}",
        ]
    lines += [
        f"  %a = attention(%qh, %kh, %vh) {{scale = {(C // HEADS) ** -0.5}, causal_offset = 0}}",
        "  %at = transpose(%a) {perm = [0, 2, 1, 3]}",
        f"  %am = reshape(%at) {{shape = [1, S, {C}]}}",
        "  %ao = matmul(%am, %o)",
        "  %h = add(%x, %ao)",
        "  %m = rms_norm(%h, %gain)",
        "  %u = matmul(%m, %up)",
        "  %r = relu(%u)",
        "  %d = matmul(%r, %down)",
        "  %y = add(%h, %d)",
        "  return %y",
        "}",
    ]
    return parse_module("\n".join(lines))


X = np.random.default_rng(0).standard_normal((1, 7, CHANNELS)).astype(np.float32)


def _out(module: Module, x: Array = X) -> Array:
    (found,) = evaluate(module, {"x": x}).values()
    return found


def test_augmented_blocks_begin_as_they_were_and_cost_little() -> None:
    module = _block()
    before, flops = _out(module), inspect_module(module, {"S": 512})["flops"]
    (record,) = regraft.apply(module, "augment-blocks{terms=3,shortcuts=2,rank=4}", check="off")
    verify(module)
    assert record.stats == {"series": 1, "shortcuts": 1}
    np.testing.assert_allclose(_out(module), before, rtol=0, atol=1e-6 * np.abs(before).max())
    assert inspect_module(module, {"S": 512})["flops"] < 1.01 * flops


def test_augmented_blocks_are_the_formula_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    module = _block()
    regraft.apply(module, "augment-blocks{terms=2,rank=4}", check="off")
    drawn: dict[str, Array] = {}
    for name in list(module.weights):
        if name.startswith("block."):
            drawn[name] = rng.standard_normal(module.weights[name].shape).astype(np.float32)
    for name, array in drawn.items():
        module.weights.set(name, ArrayWeight(array))
    w = {name: module.weights[name].numpy() for name in module.weights}
    heads = [(_rms(X, w["gain"]) @ w[n]).reshape(7, HEADS, -1).swapaxes(0, 1) for n in "qkv"]
    scores = heads[0] @ heads[1].swapaxes(1, 2) / np.sqrt(CHANNELS // HEADS)
    scores = np.where(np.tri(7, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    made = (weights / weights.sum(-1, keepdims=True)) @ heads[2]
    h = X + made.swapaxes(0, 1).reshape(1, 7, -1) @ w["o"]
    h = h + np.maximum(X @ w["block.0.shortcut.in0"], 0) @ w["block.0.shortcut.out0"]
    u = _rms(h, w["gain"]) @ w["up"]
    series = sum(
        w[f"block.0.activation.gain{i}"] * np.maximum(u + w[f"block.0.activation.shift{i}"], 0)
        for i in range(2)
    )
    expected = h + series @ w["down"]
    bound = 1e-4 * np.abs(expected).max()  # f32 sums of 1,024 products in another order
    np.testing.assert_allclose(_out(module), expected, rtol=0, atol=bound)


def _rms(x: Array, gain: Array) -> Array:
    found: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain
    return found


@pytest.mark.parametrize("name", ["llama.dyn18", "bert.dyn18", "gpt2.dyn18"])
def test_families_begin_as_they_were(name: str) -> None:
    module, feeds = regraft.load(store.load(name)), store.samples(name)
    regraft.apply(module, "canonicalize,fuse", check="off")
    before = evaluate(module, feeds)
    (record,) = regraft.apply(module, "augment-blocks", check="off")
    verify(module)
    assert record.stats["series"] > 0
    for key, value in evaluate(module, feeds).items():
        want = before[key]
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="option `terms`: 0 is not allowed"):
        regraft.apply(_block(), "augment-blocks{terms=0}", check="off")
