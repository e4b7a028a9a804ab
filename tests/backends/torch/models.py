"""Small modules in the text form, and how their PyTorch form is compared with the evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module

torch = pytest.importorskip("torch", reason="the torch backend needs PyTorch")

LAYERS = """
module "mlp"
symbol B
symbol S
weight @"net.layer.0.up.weight" : f32[16, 8] role=param = random(1)
weight @"net.layer.0.up.bias" : f32[16] role=param = random(2)
weight @"net.layer.0.down.weight" : f32[8, 16] role=param = random(3)
weight @"net.layer.1.up.weight" : f32[16, 8] role=param = random(4)
weight @"net.layer.1.up.bias" : f32[16] role=param = random(5)
weight @"net.layer.1.down.weight" : f32[8, 16] role=param = random(6)
weight @"head.weight" : f32[8, 8] role=param = random(7)
weight @"head.bias" : f32[8] role=param = random(8)

graph(%x : f32[B, S, 8], %mask : f32[B, S, 1]) {
  %scale = literal f32[] 0.5
  %u0 = weight @"net.layer.0.up.weight"
  %u0t = transpose(%u0) {perm = [1, 0]}
  %m0 = matmul(%x, %u0t)
  %b0 = weight @"net.layer.0.up.bias"
  %a0 = add(%m0, %b0)
  %r0 = relu(%a0)
  %wide = mul(%mask, %scale)
  %d0 = weight @"net.layer.0.down.weight"
  %d0t = transpose(%d0) {perm = [1, 0]}
  %y0 = matmul(%r0, %d0t)
  %z0 = mul(%y0, %wide)
  %h0 = add(%x, %z0)
  %u1 = weight @"net.layer.1.up.weight"
  %u1t = transpose(%u1) {perm = [1, 0]}
  %m1 = matmul(%h0, %u1t)
  %b1 = weight @"net.layer.1.up.bias"
  %a1 = add(%m1, %b1)
  %r1 = relu(%a1)
  %d1 = weight @"net.layer.1.down.weight"
  %d1t = transpose(%d1) {perm = [1, 0]}
  %y1 = matmul(%r1, %d1t)
  %z1 = mul(%y1, %wide)
  %h1 = add(%h0, %z1)
  %hw = weight @"head.weight"
  %hwt = transpose(%hw) {perm = [1, 0]}
  %hb = weight @"head.bias"
  %p = matmul(%h1, %hwt)
  %logits = add(%p, %hb)
  %out = reshape(%logits) {shape = [B*S, 2, 4]}
  return %out
}
"""


def layers() -> Module:
    """Returns two equal layers and a head."""
    return parse_module(LAYERS)


def layer_inputs(batch: int = 2, seq: int = 3, seed: int = 0) -> dict[str, Any]:
    """Returns inputs of `layers`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, seq, 8)).astype(np.float32),
        "mask": rng.uniform(0.5, 1, (batch, seq, 1)).astype(np.float32),
    }


def assert_same_outputs(
    module: Module, got: Mapping[str, Any], inputs: Mapping[str, Any], ulps: int = 64
) -> None:
    """Compares outputs with the evaluator's: sums of some dozen terms in another order."""
    want = evaluate(module, inputs)
    assert got.keys() == want.keys()
    for name, expected in want.items():
        found = got[name]
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert np.isfinite(expected).all()
        assert expected.size == 0 or np.abs(expected).max() > 0
        assert_close(found, expected, ulps)


def assert_close(found: Any, expected: Any, ulps: int = 64) -> None:
    """Compares f32 arrays whose elements are sums of some dozen terms of the largest's size."""
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    bound = ulps * float(np.finfo(np.float32).eps) * largest
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def model_class(source: str) -> str:
    """Returns the part of a generated file that is not copied from the library."""
    marks = [at for mark in ("\nclass Layer", "\nclass Model") if (at := source.find(mark)) >= 0]
    return source[min(marks) + 1 :]
