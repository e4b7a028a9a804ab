"""Broadcast of sizes that only run time knows: one of two input sizes may be 1."""

import numpy as np
import pytest
from onnx import parser

from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import InputError
from regraft.ir.evaluate import evaluate
from tests.conformance.agree import assert_rewrite_agrees

SIZES = [(4, 4, 4), (4, 1, 4), (1, 4, 1), (1, 1, 5), (1, 1, 1)]


def x(*shape):
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def samples(num):
    return [{n: x(size, 3) for n, size in zip("abc"[:num], sizes, strict=False)} for sizes in SIZES]


def model(body, num=3):
    inputs = ", ".join(f"float[{n.upper()}, 3] {n}" for n in "abc"[:num])
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    return parser.parse_model(f"{head}\ng ({inputs}) => (float[?, ?] y, int64[?] n) {{{body}}}")


def test_result_of_a_broadcast_has_the_larger_size():
    proto = model("p = Add(a, b)  q = Mul(p, c)  n = Shape(q)  y = Reshape(q, n)")
    assert str(load_onnx(proto).graph.outputs[0].type) == "f32[max(A, B, C), 3]"
    assert_rewrite_agrees(proto, *samples(3))


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(b)  y = Expand(a, s)  n = Shape(y)",
        "s = Shape(b)  o = ConstantOfShape(s)  y = Sub(a, o)  n = Shape(y)",
        "p = Add(a, b)  y = Add(p, a)  n = Shape(y)",
        "m = Max(a, b)  c = Greater(a, b)  y = Where(c, a, m)  n = Shape(c)",
    ],
)
def test_no_rewrite_takes_two_input_sizes_for_equal(body):
    assert_rewrite_agrees(model(body, 2), *samples(2))


def test_evaluate_takes_sizes_that_broadcast_and_no_others():
    module = load_onnx(model("y = Add(a, b)  n = Shape(y)", 2))
    result = evaluate(module, {"a": x(4, 3), "b": x(1, 3)})
    np.testing.assert_array_equal(result["y"], x(4, 3) + x(1, 3))
    np.testing.assert_array_equal(result["n"], [4, 3])
    with pytest.raises((InputError, ValueError), match=r"broadcast"):
        evaluate(module, {"a": x(4, 3), "b": x(2, 3)})


def test_size_cut_to_a_limit_is_no_larger_than_the_size():
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, S, 4] a) => (float[?, ?, ?] y) {
      table = Constant <value = float[1, 2, 4] {1, 2, 3, 4, 5, 6, 7, 8}> ()
      s = Shape <start = 1, end = 2> (a)
      zero = Constant <value_ints = [0]> ()
      one = Constant <value_ints = [1]> ()
      part = Slice(table, zero, s, one)
      y = Add(a, part)
    }
    """)
    module = load_onnx(proto)
    assert str(module.graph.outputs[0].type) == "f32[1, S, 4]"
    assert_rewrite_agrees(proto, {"a": x(1, 2, 4)}, {"a": x(1, 1, 4)})
