"""Parts of modules: what they read, sizes among it."""

from __future__ import annotations

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.extract import extract
from regraft.ir.module import Module
from regraft.ir.text import parse_module

FLATTENED = """
module "flattened"

symbol B
symbol S

graph(%x : f32[B, S, 4], %z : f32[B, 4]) {
  %rows = reshape(%x) {shape = [B*S, 4]}
  %kept = relu(%rows)
  %back = reshape(%kept) {shape = [B, S, 4]}
  return %back, %z
}
"""


def part(module: Module, known: str, wanted: str) -> Module:
    values = {value.name: value for node in module.graph for value in node.outputs}
    return extract(module, {"known": values[known]}, {"wanted": values[wanted]})


def test_a_size_that_only_an_input_tells_makes_it_an_input() -> None:
    module = parse_module(FLATTENED)
    made = part(module, "kept", "back")
    assert [value.name for value in made.graph.inputs] == ["known", "x"]
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 9
    feeds = {"known": np.maximum(x, 0).reshape(6, 4), "x": x}
    np.testing.assert_array_equal(evaluate(made, feeds)["wanted"], np.maximum(x, 0))


def test_nothing_is_read_without_need() -> None:
    made = part(parse_module(FLATTENED), "rows", "kept")
    assert [value.name for value in made.graph.inputs] == ["known"]
