"""The target `onnx`: operators that the opset lacks become bodies, which share what is equal."""

from collections import Counter

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context

CAUSAL_TWICE = """
symbol B
symbol S
graph(%q : f32[B, 2, S, 4], %k : f32[B, 2, S, 4]) {
  %1 = attention(%q, %k, %k) {scale = 0.5, causal_offset = 0}
  %y = attention(%1, %k, %q) {scale = 0.5, causal_offset = 0}
  return %y
}
"""

GROUPS = """
symbol B
graph(%x : f32[B, 4, 3, 5], %g : f32[4], %b : f32[4]) {
  %y = group_norm(%x, %g, %b) {groups = 2}
  return %y
}
"""

OTHER_LENGTH = """
symbol B
symbol S
symbol T
graph(%q : f32[B, 2, S, 4], %k : f32[B, 2, S, 4], %m : f32[1, 1, 1, T]) {
  %y = attention(%q, %k, %k, %m) {scale = 0.5}
  return %y
}
"""


def legalized(text: str, opset: int) -> Module:
    module = parse_module(text)
    Legalize("onnx", opset).run(module, Context(legalizers=legalizers()))
    return module


def inputs(module: Module) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"B": 2, "S": 5, "T": 5}
    return {
        value.name: rng.standard_normal(
            [d if isinstance(d, int) else sizes[str(d)] for d in value.shape]
        ).astype(np.float32)
        for value in module.graph.inputs
    }


@pytest.mark.parametrize("text", [CAUSAL_TWICE, GROUPS])
def test_bodies_compute_the_same(text: str) -> None:
    module, source = legalized(text, 17), parse_module(text)
    given = inputs(source)
    expected = evaluate(source, given)["y"]
    emitted = OrtRunner(to_proto(module, opset=17))(given)["y"]
    # sums of a few terms of order one
    np.testing.assert_allclose(emitted, expected, 0, 1e-5)
    assert np.abs(expected).max() > 0.1


def test_layers_share_the_mask_that_positions_make() -> None:
    module = legalized(CAUSAL_TWICE, 17)
    ops = Counter(node.op.name for node in module.graph)
    assert ops["attention"] == 0
    assert ops["softmax"] == 2
    assert ops["less_or_equal"] == 1


def test_an_operator_that_the_opset_has_stays() -> None:
    module = legalized(CAUSAL_TWICE, 23)
    assert [node.op.name for node in module.graph].count("attention") == 2


def test_a_legalized_file_is_raised_to_the_same_operators() -> None:
    loaded = regraft.load(to_proto(legalized(CAUSAL_TWICE, 17), opset=17))
    regraft.apply(loaded, "canonicalize,fuse,canonicalize", check="off")
    found = [node for node in loaded.graph if node.op.name == "attention"]
    assert [node.attrs["causal_offset"] for node in found] == [0, 0]


def test_a_mask_whose_length_is_not_known_to_be_that_of_the_keys_is_emitted() -> None:
    module = parse_module(OTHER_LENGTH)
    given = inputs(module)
    emitted = OrtRunner(to_proto(module, opset=23))(given)["y"]
    np.testing.assert_allclose(emitted, evaluate(module, given)["y"], 0, 1e-5)


ONE_HEAD = """
symbol B
symbol S
graph(%q : f32[B, S, 4], %k : f32[B, S, 4]) {
  %1 = reshape(%q) {shape = [B, 1, S, 4]}
  %2 = reshape(%k) {shape = [B, 1, S, 4]}
  %3 = attention(%1, %2, %2) {scale = 0.5}
  %y = reshape(%3) {shape = [B, S, 4]}
  return %y
}
"""


def test_one_head_is_written_without_an_axis_for_heads() -> None:
    module, source = legalized(ONE_HEAD, 17), parse_module(ONE_HEAD)
    assert "reshape" not in {node.op.name for node in module.graph}
    given = inputs(source)
    expected = evaluate(source, given)["y"]
    emitted = OrtRunner(to_proto(module, opset=17))(given)["y"]
    np.testing.assert_allclose(emitted, expected, 0, 1e-5)


WINDOWS = """
symbol B
graph(%q : f32[B, 2, 3, 5, 4], %k : f32[B, 2, 3, 6, 4], %v : f32[B, 2, 3, 6, 4]) {
  %1 = transpose(%q) {perm = [0, 2, 1, 3, 4]}
  %2 = transpose(%k) {perm = [0, 2, 1, 3, 4]}
  %3 = transpose(%v) {perm = [0, 2, 1, 3, 4]}
  %4 = reshape(%1) {shape = [3*B, 2, 5, 4]}
  %5 = reshape(%2) {shape = [3*B, 2, 6, 4]}
  %6 = reshape(%3) {shape = [3*B, 2, 6, 4]}
  %7 = attention(%4, %5, %6) {scale = 0.5}
  %8 = reshape(%7) {shape = [B, 3, 2, 5, 4]}
  %y = transpose(%8) {perm = [0, 2, 1, 3, 4]}
  return %y
}
"""


def test_windows_beside_the_batch_are_written_in_the_axes_they_had() -> None:
    module, source = legalized(WINDOWS, 17), parse_module(WINDOWS)
    ops = Counter(node.op.name for node in module.graph if node.inputs)
    # the one transpose is that of the keys
    assert ops == {"mul": 1, "transpose": 1, "matmul": 2, "softmax": 1}
    given = inputs(source)
    expected = evaluate(source, given)["y"]
    # sums of a few terms of order one
    np.testing.assert_allclose(evaluate(module, given)["y"], expected, 0, 1e-5)
    assert np.abs(expected).max() > 0.1


ROTARY = """
symbol B
symbol P
graph(%x : f32[B, 2, 5, 6], %c : f32[P, 2], %s : f32[P, 2], %at : i64[B, 5]) {
  %y = rotary_embedding(%x, %c, %s, %at) {interleaved = true, rotary_size = 4}
  return %y
}
"""


def test_rotary_of_neighbours_takes_eight_nodes_besides_shared_tables() -> None:
    text = ROTARY.replace(", %at : i64[B, 5]", "").replace(", %at", "").replace("[P, 2]", "[5, 2]")
    text = text.replace(", rotary_size = 4", "").replace("5, 6]", "5, 4]")
    ops = Counter(node.op.name for node in legalized(text, 17).graph)
    tables = {"expand": 2, "reshape": 4}
    assert ops == Counter(reshape=2, split=1, neg=1, concat=1, mul=2, add=1) + Counter(tables)


def test_rotary_of_neighbours_computes_the_same() -> None:
    module, source = legalized(ROTARY, 17), parse_module(ROTARY)
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(shape).astype(np.float32)
             for name, shape in (("x", (3, 2, 5, 6)), ("c", (9, 2)), ("s", (9, 2)))}  # fmt: skip
    given["at"] = rng.integers(0, 9, (3, 5))
    expected = evaluate(source, given)["y"]
    assert not any(node.op.name == "rotary_embedding" for node in module.graph)
    # the same products and sums, in one other order
    np.testing.assert_allclose(evaluate(module, given)["y"], expected, 0, 1e-6)
    assert np.abs(expected).max() > 0.1
