"""Models with replaced softmax: PyTorch and ONNX Runtime agree, what is learned has gradients."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.attention.variants import VARIANTS
from tests.backends.torch.models import torch
from tests.conformance.cases import run_ort

from regraft.backends.torch import to_torch  # isort: skip  # needs torch

BLOCK = """module "block"
symbol B
weight @"q.weight" : f32[12, 12] role=param = random(0)
weight @"k.weight" : f32[12, 6] role=param = random(1)
graph(%x : f32[B, 5, 12]) {
  %wq = weight @"q.weight"
  %wk = weight @"k.weight"
  %q0 = matmul(%x, %wq)
  %k0 = matmul(%x, %wk)
  %q1 = reshape(%q0) {shape = [B, 5, 4, 3]}
  %k1 = reshape(%k0) {shape = [B, 5, 2, 3]}
  %q = transpose(%q1) {perm = [0, 2, 1, 3]}
  %k = transpose(%k1) {perm = [0, 2, 1, 3]}
  %y = attention(%q, %k, %k) {scale = 0.5, kv_groups = 2, causal_offset = 0}
  return %y
}
"""
X = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)
LEARNING = ("gated", "entmax,learned=true", "sinks", "qk-norm", "scalable", "principled",
            "threshold")  # fmt: skip


def _replaced(variant: str) -> Module:
    module = parse_module(BLOCK)
    (record,) = regraft.apply(module, f"replace-softmax{{variant={variant}}}", check="off")
    assert record.stats["replaced"] == 1
    return module


@pytest.mark.parametrize("variant", [*VARIANTS, "entmax,learned=true"])
def test_pytorch_and_onnx_runtime_agree(variant: str) -> None:
    module = _replaced(variant)
    (there,) = run_ort(to_proto(module), [X])
    with torch.no_grad():
        here = to_torch(module)(torch.from_numpy(X)).numpy()
    # sums of 12 products, then of 5; powers of 3 and more multiply rounding
    np.testing.assert_allclose(here, there, rtol=0, atol=512 * np.finfo(np.float32).eps)
    assert np.abs(here).max() > 0.1


@pytest.mark.parametrize("variant", LEARNING)
def test_what_is_learned_has_a_gradient(variant: str) -> None:
    net = to_torch(_replaced(variant))
    net(torch.from_numpy(X)).square().sum().backward()
    added = {name: p for name, p in net.named_parameters() if name.startswith("attention.")}
    assert added
    # the inner layer of a network whose outer layer begins at zero has none yet
    late = {name for name in added if name.endswith("_in")}
    for name in added.keys() - late:
        gradient = added[name].grad
        assert gradient is not None, name
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).any(), name
