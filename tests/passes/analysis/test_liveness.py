"""The most bytes of intermediate values that are alive at one time."""

from __future__ import annotations

import pytest

from regraft.ir.text import parse_module
from regraft.passes.analysis.liveness import peak_activation_bytes

TEXT = """weight @w : f32[64, 4] role=param = random(1)
graph(%x : f32[B, 64]) {{
  %w = weight @w
{body}
  return %y
}}
"""

MOVED = """\
  %t = transpose(%w) {perm = [1, 0]}
  %u = transpose(%t) {perm = [1, 0]}
  %y = matmul(%x, %u)"""


@pytest.mark.parametrize(
    ("body", "elements"),
    [
        ("  %y = matmul(%x, %w)", 64 + 4),
        (MOVED, 64 + 4),  # a runtime moves what it stores once, when it loads the model
        ("  %s = relu(%w)\n  %y = matmul(%x, %s)", 64 + 256 + 4),
    ],
)
def test_moved_weights_are_no_activations(body: str, elements: int) -> None:
    module = parse_module(TEXT.format(body=body))
    assert peak_activation_bytes(module.graph, {"B": 1}) == 4 * elements
