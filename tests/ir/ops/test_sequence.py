import numpy as np
import pytest
from onnx import parser

from regraft.frontends.onnx import load_onnx
from tests.conformance.agree import assert_agree

EXACT = {"rtol": 0.0, "atol": 0.0}


def model(body, opset=17):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')


def x(*shape):
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def test_insert_erase_and_at_agree():
    text = """
    g (float[N, 3] a, float[N, 3] b, int64 i) => (float[N, 3] y, int64 n) {
      s = SequenceConstruct(a, b)
      t = SequenceInsert(s, a, i)
      u = SequenceInsert(t, b)
      v = SequenceErase(u, i)
      w = SequenceErase(v)
      y = SequenceAt(w, i)
      n = SequenceLength(w)
    }
    """
    proto = model(text)
    assert [str(v.type) for v in load_onnx(proto).graph.outputs] == ["f32[N, 3]", "i64[]"]
    for position in (0, 1, -1):
        inputs = {"a": x(2, 3), "b": -x(2, 3), "i": np.array(position)}
        assert_agree(proto, inputs, **EXACT)


def test_elements_of_different_sizes_have_no_common_shape():
    text = """
    g (float[N, 3] a, float[M, 3] b) => (float[?, 3] y) {
      s = SequenceConstruct(a, b)
      y = ConcatFromSequence <axis = 0> (s)
    }
    """
    proto = model(text)
    module = load_onnx(proto)
    sequence = next(n for n in module.graph if n.op.name == "sequence_construct")
    assert str(sequence.output.type) == "seq(f32[*])"
    assert_agree(proto, {"a": x(2, 3), "b": x(4, 3)}, **EXACT)


@pytest.mark.parametrize(
    ("split", "keepdims", "element"),
    [
        (None, 1, "f32[6, 1]"),
        (None, 0, "f32[6]"),
        ("int64 {2}", 1, "f32[6, 2]"),
        ("int64 {3}", 1, "f32[*]"),
        ("int64[2] {2, 2}", 1, "f32[6, 2]"),
        ("int64[2] {1, 3}", 1, "f32[*]"),
    ],
)
def test_split_types_and_values(split, keepdims, element):
    constant = f"p = Constant <value = {split}> ()" if split else ""
    text = f"""
    g (float[6, 4] a) => (float[?] y, int64 n) {{
      {constant}
      s = SplitToSequence <axis = -1, keepdims = {keepdims}> (a{", p" if split else ""})
      i = Constant <value_int = 0> ()
      y = SequenceAt(s, i)
      n = SequenceLength(s)
    }}
    """
    proto = model(text)
    node = next(n for n in load_onnx(proto).graph if n.op.name == "split_to_sequence")
    assert str(node.output.type) == f"seq({element})"
    assert_agree(proto, {"a": x(6, 4)}, **EXACT)


def test_map_runs_its_body_on_every_element_and_captures():
    text = """
    g (float[N] a, float[N] b, float[N] c) => (float[?, ?] y) {
      s = SequenceConstruct(a, b)
      t = SequenceMap (s, c) <
        body = f (float[K] e, float[K] k) => (float[K] r) { p = Mul(e, k)  r = Add(p, c) }
      >
      y = ConcatFromSequence <axis = 0, new_axis = 1> (t)
    }
    """
    proto = model(text)
    module = load_onnx(proto)
    node = next(n for n in module.graph if n.op.name == "sequence_map")
    assert str(node.output.type) == "seq(f32[N])"
    assert_agree(proto, {"a": x(3), "b": -x(3), "c": x(3)}, **EXACT)


def test_optional_values_agree():
    text = """
    g (float[N] a) => (float[N] y, bool has, bool none) {
      o = Optional(a)
      y = OptionalGetElement(o)
      has = OptionalHasElement(o)
      none = OptionalHasElement()
    }
    """
    proto = model(text, 18)
    assert [str(v.type) for v in load_onnx(proto).graph.outputs] == ["f32[N]", "bool[]", "bool[]"]
    assert_agree(proto, {"a": x(3)}, **EXACT)
