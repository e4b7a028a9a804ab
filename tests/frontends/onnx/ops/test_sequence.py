"""Importers of sequence operators: a `split` of one number is not a list of one number."""

import numpy as np
import pytest
from onnx import parser

from tests.conformance.agree import assert_rewrite_agrees


@pytest.mark.parametrize("split", ["int64 {2}", "int64 {5}", "int64 {9}", "int64[1] {5}"])
@pytest.mark.parametrize("size", ["5", "N"])
def test_split_by_a_constant_survives_canonicalize(split, size):
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{size}, 3] a) => (float[?, 3] y, int64 n) {{
      p = Constant <value = {split}> ()
      s = SplitToSequence <axis = 0> (a, p)
      i = Constant <value_int = -1> ()
      y = SequenceAt(s, i)
      n = SequenceLength(s)
    }}
    """)
    assert_rewrite_agrees(proto, {"a": np.arange(15, dtype=np.float32).reshape(5, 3)})
