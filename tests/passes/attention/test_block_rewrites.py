"""Norms that move, gains that fold, pooling in place of attention and convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.passes.attention import MoveNorm
from regraft.passes.protocol import Exact, Lossy

Array = np.ndarray[Any, Any]

LAYERS = 4


def _stack(kind: str = "layer_norm") -> Module:
    """Returns pre-norm layers `h + relu(norm(h) @ up) @ down` with large weights."""
    lines = ['module "stack"', "symbol B"]
    for i in range(LAYERS):
        lines += [
            f'weight @"{i}.gain" : f32[8] role=param = random({4 * i})',
            f'weight @"{i}.shift" : f32[8] role=param = random({4 * i + 1})',
            f'weight @"{i}.up" : f32[8, 16] role=param = random({4 * i + 2})',
            f'weight @"{i}.down" : f32[16, 8] role=param = random({4 * i + 3})',
        ]
    lines.append("graph(%h0 : f32[B, 8]) {")
    for i in range(LAYERS):
        shift = f", %s{i}" if kind == "layer_norm" else ""
        lines += [
            f'  %g{i} = weight @"{i}.gain"',
            f'  %s{i} = weight @"{i}.shift"',
            f'  %u{i} = weight @"{i}.up"',
            f'  %d{i} = weight @"{i}.down"',
            f"  %n{i} = {kind}(%h{i}, %g{i}{shift})",
            f"  %m{i} = matmul(%n{i}, %u{i})",
            f"  %r{i} = relu(%m{i})",
            f"  %p{i} = matmul(%r{i}, %d{i})",
            f"  %h{i + 1} = add(%h{i}, %p{i})",
        ]
    lines += [f"  return %h{LAYERS}", "}"]
    return parse_module("\n".join(lines))


X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


def _out(module: Module) -> Array:
    (found,) = evaluate(module, {"h0": X}).values()
    return found


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norms_that_begin_switched_off_change_nothing(kind: str) -> None:
    module = _stack(kind)
    (record,) = regraft.apply(module, "move-norm")
    assert record.stats["moved"] == LAYERS
    verify(module)
    np.testing.assert_array_equal(_out(module), _out(_stack(kind)))
    assert isinstance(MoveNorm().contract, Exact)
    assert isinstance(MoveNorm("on").contract, Lossy)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_normalized_branches_bound_the_stream_whatever_the_weights(scale: float) -> None:
    """Kim et al. 2025: with gains of 1, each sublayer adds a variance of 1 at most."""
    module = _stack()
    for i in range(LAYERS):
        array = module.weights[f"{i}.down"].numpy() * np.float32(scale)
        module.weights.set(f"{i}.down", regraft.ir.weights.ArrayWeight(array))
    regraft.apply(module, "move-norm{start=on}", check="off")
    before = np.sqrt(np.mean(np.square(X), -1))
    after = np.sqrt(np.mean(np.square(_out(module)), -1))
    assert (after <= before + LAYERS + 1e-4).all()
    if scale > 1:
        assert np.abs(_out(_stack())).max() < np.inf


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_folded_gains_leave_outputs_equal(kind: str) -> None:
    module = _stack(kind)
    plain = _out(module)
    (record,) = regraft.apply(module, "fold-norm-gains")
    assert record.stats["folded"] == LAYERS
    verify(module)
    np.testing.assert_allclose(_out(module), plain, rtol=0, atol=1e-6 * np.abs(plain).max())
    (again,) = regraft.apply(module, "fold-norm-gains")
    assert not again.changed


def test_pooling_takes_the_place_of_attention() -> None:
    module = regraft.load(store.load("vit.dyn18"))
    regraft.apply(module, "canonicalize,fuse", check="off")
    count = len(list(module.weights))
    (record,) = regraft.apply(module, "replace-mixer{kind=avgpool}", check="off")
    wanted = sum(block.count for block in store.truth("vit.dyn18").attention)
    assert record.stats["replaced"] == wanted, record.skipped
    verify(module)
    assert len(list(module.weights)) < count
    assert all(np.isfinite(x).all() for x in evaluate(module, store.samples("vit.dyn18")).values())
    assert "attention" not in {node.op.name for node in module.graph}


def test_maximum_takes_the_place_of_a_depthwise_convolution() -> None:
    text = """module "conv"
symbol B
weight @"w" : f32[6, 1, 3, 3] role=param = random(0)
weight @"full" : f32[6, 3, 1, 1] role=param = random(1)
graph(%x : f32[B, 6, 8, 8]) {
  %w = weight @"w"
  %f = weight @"full"
  %y = conv(%x, %w) {strides = [2, 2], dilations = [1, 1], pads = [1, 1, 1, 1], groups = 6}
  %z = conv(%y, %f) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0], groups = 2}
  return %y, %z
}
"""
    module, source = parse_module(text), parse_module(text)
    (record,) = regraft.apply(module, "replace-mixer{kind=maxpool}", check="off")
    assert record.stats["replaced"] == 1
    assert [skip.reason for skip in record.skipped] == [
        "mixer: it mixes channels: only a depthwise convolution has a pooling of its form"
    ]
    assert set(source.weights) - set(module.weights) == {"w"}
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32)
    pooled, _ = evaluate(module, {"x": x}).values()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    for i, j in np.ndindex(4, 4):
        window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_array_equal(pooled[:, :, i, j], window.max((2, 3)))


@pytest.mark.parametrize("planted", [(1,), (0, 2), (0, 1, 2)])
def test_heads_that_average_become_means_and_sharp_ones_stay(planted: tuple[int, ...]) -> None:
    """Ramsauer et al. 2021: a planted uniform head is replaced with an error of 1e-6 at most."""
    rng = np.random.default_rng(0)
    gate = np.ones((1, 3, 1, 1), np.float32)
    gate[:, list(planted)] = 0
    text = """module "heads"
symbol B
weight @"gate" : f32[1, 3, 1, 1] role=param = random(0)
graph(%q : f32[B, 3, 5, 4], %k : f32[B, 3, 6, 4], %v : f32[B, 3, 6, 7]) {
  %g = weight @"gate"
  %p = mul(%q, %g)
  %y = attention(%p, %k, %v) {scale = 1.5}
  return %y
}
"""
    module = parse_module(text)
    module.weights.set("gate", regraft.ir.weights.ArrayWeight(gate))
    shapes = {"q": (2, 3, 5, 4), "k": (2, 3, 6, 4), "v": (2, 3, 6, 7)}
    samples = [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    (plain,) = evaluate(module, samples[0]).values()
    (record,) = regraft.apply(module, "fold-averaging-heads", samples=samples, check="off")
    assert record.stats == {"heads": 3, "folded": len(planted)}
    verify(module)
    (folded,) = evaluate(module, samples[0]).values()
    np.testing.assert_allclose(folded, plain, rtol=0, atol=1e-6)
    left = [node for node in module.graph if node.op.name == "attention"]
    assert [node.inputs[0].shape[1] for node in left] == ([3 - len(planted)] * (len(planted) < 3))
    (again,) = regraft.apply(module, "fold-averaging-heads", samples=samples, check="off")
    assert again.stats["folded"] == 0
