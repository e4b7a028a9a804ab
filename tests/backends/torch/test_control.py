"""If, loop and scan as Python statements."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import regraft
from tests.backends.torch.models import assert_same_outputs, torch

from regraft.backends.torch import source_of, to_torch  # isort: skip  # needs torch
from regraft.backends.torch.executor import TorchRunner  # isort: skip

IF = """
g (float[N,3] x, bool c) => (float[N,3] y) {
  r = Relu(x)
  y0 = If(c) <
    then_branch = t () => (float[N,3] a) { a0 = Add(r, x)
      a = Mul(a0, r) },
    else_branch = e () => (float[N,3] b) { b = Relu(r) }
  >
  y = Add(y0, r)
}
"""
LOOP = """
g (float[N,3] x, int64 t, bool c) => (float[N,3] y, float[N,3] z, float[K,N,3] ys) {
  r = Relu(x)
  y, z, ys = Loop(t, c, x, r) <body = b (int64 i, bool ci, float[N,3] v, float[N,3] u)
    => (bool co, float[N,3] w, float[N,3] v2, float[N,3] s) {
      co = Identity(ci)
      w = Add(u, x)
      v2 = Identity(v)
      s = Mul(w, v) }>
}
"""
SCAN = """
g (float[N,3] x, float[N,T,3] xs) => (float[N,3] y, float[N,T,3] ys) {
  y, ys = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
                scan_output_axes = [1], scan_output_directions = [1],
    body = b (float[N,3] v, float[N,3] u) => (float[N,3] w, float[N,3] s) {
      w = Add(v, u)
      s = Mul(w, u) }>(x, xs)
}
"""


def _check(text: str, *samples: dict[str, Any]) -> str:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    module = regraft.load(onnx.parser.parse_model(header + text))
    net = to_torch(module)
    for inputs in samples:
        assert_same_outputs(module, TorchRunner(net, module)(inputs), inputs)
    return source_of(net)


def _array(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("cond", [True, False])
def test_if_is_an_if(cond: bool) -> None:
    source = _check(IF, {"x": _array(2, 3), "c": np.array(cond)})
    assert "        if c:\n" in source


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop_carries_swapped_values_and_collects(trips: int) -> None:
    sample = {"x": _array(2, 3), "t": np.array(trips), "c": np.array(True)}
    _check(LOOP, sample)


def test_loop_stops_when_its_condition_is_false() -> None:
    _check(LOOP, {"x": _array(2, 3), "t": np.array(3), "c": np.array(False)})


def test_scan_takes_slices_of_any_axis_backwards() -> None:
    _check(SCAN, {"x": _array(2, 3), "xs": _array(2, 4, 3)})


def test_counted_loop_is_a_for_loop() -> None:
    text = """
g (float[N,3] x, int64 t) => (float[N,3] y) {
  y = Loop(t, , x) <body = b (int64 i, bool ci, float[N,3] v) => (bool ci2, float[N,3] w) {
    ci2 = Constant <value = bool {1}> ()
    w = Add(v, x) }>
}
"""
    source = _check(text, {"x": _array(2, 3), "t": np.array(3)})
    assert "in range(int(t)):" in source


def test_gradients_flow_through_a_loop() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    net = to_torch(regraft.load(onnx.parser.parse_model(header + LOOP)))
    x = torch.randn(2, 3, requires_grad=True)
    net(x, torch.tensor(3), torch.tensor(True))[2].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
