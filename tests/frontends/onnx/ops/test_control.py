import numpy as np
import onnx
import pytest
from onnx import parser

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import captured_value, constant_of, opaque
from regraft.ir.errors import InputError
from regraft.ir.evaluate import evaluate
from regraft.ir.ops import control
from tests.conformance.agree import assert_agree, assert_rewrite_agrees
from tests.conformance.cases import mismatch, run_ort

EXACT = {"rtol": 0.0, "atol": 0.0}


def model(text: str, opset: int = 16) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def node_of(module, spec):
    return next(node for node in module.graph.walk() if node.op is spec)


def x(*shape):
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


IF = """
g (bool c, float[B, 4] x) => (float[?, ?] y) {
  w = Constant <value = float[4] {1, 2, 3, 4}> ()
  y = If (c) <
    then_branch = t () => (float[?, ?] r) { a = Add(x, w)  r = Neg(a) },
    else_branch = e () => (float[?, ?] r) { r = Mul(x, w) }
  >
}
"""


@pytest.mark.parametrize("cond", [True, False])
def test_if_runs_the_branch_of_its_condition(cond):
    assert_agree(model(IF), {"c": np.array(cond), "x": x(3, 4)}, **EXACT)


def test_if_gives_both_branches_the_same_captures_and_copies_constants():
    module = load_onnx(model(IF))
    node = node_of(module, control.if_)
    assert node.attrs["num_captures"] == 1
    assert [value.name for value in node.inputs] == ["c", "x"]
    assert all([value.name for value in body.inputs] == ["x"] for body in node.bodies)
    assert captured_value(node.bodies[0].inputs[0]) is module.graph.inputs[1]
    assert str(node.output.type) == "f32[B, 4]"


@pytest.mark.parametrize("data", ["w", "x", "h"])
def test_branch_that_the_sizes_contradict_need_not_run(data):
    proto = model(f"""
    g (bool c, float[2] x) => (float[?] y) {{
      w = Constant <value = float[3] {{1, 2, 3}}> ()
      h = Concat <axis = 0> (x, x, x)
      y = If (c) <
        then_branch = t () => (float[?] r) {{ r = Neg(x) }},
        else_branch = e () => (float[?, 5] r) {{
          s = Constant <value_ints = [2, 5]> ()
          p = Reshape({data}, s)
          r = Relu(p)
        }}
      >
    }}
    """)
    module = assert_rewrite_agrees(proto, {"c": np.array(True), "x": x(2)})
    assert "relu" in [node.op.name for node in module.graph.walk()]
    with pytest.raises(ValueError, match="cannot reshape"):
        evaluate(module, {"c": np.array(False), "x": x(2)})


def test_if_result_joins_branch_types():
    text = """
    g (bool c, float[B, 4] x) => (float[?, ?] y, float[?] z) {
      y, z = If (c) <
        then_branch = t () => (float[?, ?] r, float[?] s) {
          n = Constant <value_ints = [-1]> ()
          r = Concat <axis = 0> (x, x)
          s = Reshape(x, n)
        },
        else_branch = e () => (float[?, ?] r, float[?, ?] s) { r = Neg(x)  s = Abs(x) }
      >
    }
    """
    node = node_of(load_onnx(model(text)), control.if_)
    y, z = (value.type for value in node.outputs)
    assert y.shape[1] == 4
    assert y.shape[0].as_symbol().defined
    assert z.shape is None
    assert str(z.dtype) == "f32"


def test_constant_condition_imports_the_branch_that_runs_only():
    # the other branch squeezes an axis of size 3, which would not type
    text = """
    g (float[2, 3] x) => (float[?, ?] y) {
      s = Shape(x)
      i = Constant <value_int = 1> ()
      n = Gather(s, i)
      one = Constant <value_int = 1> ()
      c = Equal(n, one)
      y = If (c) <
        then_branch = t () => (float[?] r) {
          axes = Constant <value_ints = [1]> ()  r = Squeeze(x, axes)
        },
        else_branch = e () => (float[?, ?] r) { r = Neg(x) }
      >
    }
    """
    module = load_onnx(model(text))
    assert not any(node.op is control.if_ for node in module.graph.walk())
    assert str(module.graph.outputs[0].type) == "f32[2, 3]"
    assert np.array_equal(run_ort(to_proto(module), [x(2, 3)])[0], -x(2, 3))


NESTED = """
g (bool c, bool d, float[N] x, float[N] z) => (float[N] y) {
  y = If (c) <
    then_branch = t () => (float[N] r) {
      b = Neg(x)
      r = If (d) <
        then_branch = tt () => (float[N] q) { a = Add(b, z)  q = Add(a, x) },
        else_branch = te () => (float[N] q) { q = Identity(z) }
      >
    },
    else_branch = e () => (float[N] r) { r = Identity(x) }
  >
}
"""


@pytest.mark.parametrize("cond", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_inner_bodies_capture_from_all_enclosing_graphs(cond, inner):
    inputs = {"c": np.array(cond), "d": np.array(inner), "x": x(3), "z": 10 * x(3)}
    assert_agree(model(NESTED), inputs, **EXACT)


def test_names_that_both_branches_share_with_the_outer_graph_stay_apart():
    text = """
    g (bool c, float[N] x) => (float[N] y) {
      t = Neg(x)
      u = If (c) <
        then_branch = a () => (float[N] r) { v = Abs(t)  r = Exp(v) },
        else_branch = b () => (float[N] r) { v = Add(t, t)  r = Neg(v) }
      >
      v = Neg(u)
      y = Add(v, t)
    }
    """
    assert_agree(model(text), {"c": np.array(True), "x": x(3)}, rtol=4 * 2**-23, atol=0)


GROWING = """
g (int64 n, float[1, D] x) => (float[?, D] y, float[?, ?] rows) {
  t = Constant <value = bool {1}> ()
  y, rows = Loop (n, t, x) <
    body = b (int64 i, bool c, float[?, D] v) => (bool c2, float[?, D] v2, float[D] row) {
      c2 = Identity(c)
      s = Shape(v)
      zero = Constant <value_ints = [0]> ()
      one = Constant <value_ints = [1]> ()
      rows = Gather(s, zero)
      minus = Constant <value_ints = [-1]> ()
      shape = Concat <axis = 0> (rows, minus)
      w = Reshape(v, shape)
      v2 = Concat <axis = 0> (w, x)
      row = ReduceSum <keepdims = 0> (v2, zero)
    }
  >
}
"""


def test_loop_generalizes_the_sizes_that_its_body_changes():
    module = load_onnx(model(GROWING))
    node = node_of(module, control.loop)
    formal = node.bodies[0].inputs[2].type
    assert formal.shape[0].as_symbol().defined
    assert str(formal.shape[1]) == "D"
    y, rows = (value.type for value in node.outputs)
    assert y.shape[0].as_symbol().defined
    assert y.shape[0] != formal.shape[0], "the body's own size must not escape"
    assert str(rows.shape[1]) == "D"


@pytest.mark.parametrize("trips", [1, 4])
def test_growing_loop_agrees(trips):
    assert_agree(model(GROWING), {"n": np.array(trips), "x": x(1, 3)}, **EXACT)


def test_loop_of_known_trip_count_gives_its_scanned_size():
    text = """
    g (float[D] x) => (float[D] y, float[?, D] rows) {
      n = Constant <value_int = 5> ()
      t = Constant <value = bool {1}> ()
      y, rows = Loop (n, t, x) <
        body = b (int64 i, bool c, float[D] v) => (bool c2, float[D] v2, float[D] row) {
          c2 = Constant <value = bool {1}> ()
          v2 = Add(v, x)
          row = Neg(v)
        }
      >
    }
    """
    module = load_onnx(model(text))
    assert [str(v.type) for v in module.graph.outputs] == ["f32[D]", "f32[5, D]"]
    assert_agree(model(text), {"x": x(3)}, **EXACT)


def test_loop_stops_when_its_condition_turns_false():
    text = """
    g (float[D] x, int64 stop) => (float[D] y) {
      t = Constant <value = bool {1}> ()
      y = Loop (, t, x) <
        body = b (int64 i, bool c, float[D] v) => (bool c2, float[D] v2) {
          c2 = Less(i, stop)
          v2 = Add(v, x)
        }
      >
    }
    """
    proto = model(text)
    inputs = {"x": x(3), "stop": np.array(4)}
    (y,) = assert_agree(proto, inputs, **EXACT)
    assert np.array_equal(y, 6 * x(3))


def test_weights_of_a_body_that_is_typed_twice_are_stored_once():
    big = ", ".join("1" for _ in range(400))
    text = GROWING.replace(
        "c2 = Identity(c)",
        f"c2 = Identity(c)  k = Constant <value = float[400] {{{big}}}> ()  kk = Neg(k)",
    )
    module = load_onnx(model(text))
    assert len(module.weights) == 1


def test_sequences_are_carried():
    text = """
    g (int64 n, float[D] x) => (float[?] y) {
      t = Constant <value = bool {1}> ()
      e = SequenceEmpty <dtype = 1> ()
      s = Loop (n, t, e) <
        body = b (int64 i, bool c, seq(float[?]) v) => (bool c2, seq(float[?]) v2) {
          c2 = Identity(c)
          v2 = SequenceInsert(v, x)
        }
      >
      y = ConcatFromSequence <axis = 0> (s)
    }
    """
    assert_agree(model(text), {"n": np.array(3), "x": x(2)}, **EXACT)


SCAN = """
g (float[H] h, float[H, S] xs) => (float[H] y, float[?, ?] ys) {
  y, ys = Scan <num_scan_inputs = 1, scan_input_axes = [-1], scan_input_directions = [1],
                scan_output_axes = [1], scan_output_directions = [1],
    body = b (float[H] s, float[H] v) => (float[H] s2, float[H] o) {
      a = Add(s, v)
      s2 = Add(a, h)
      o = Neg(s2)
    }
  > (h, xs)
}
"""


def test_scan_types_and_values():
    module = load_onnx(model(SCAN))
    assert [str(v.type) for v in module.graph.outputs] == ["f32[H]", "f32[H, S]"]
    assert_agree(model(SCAN), {"h": x(2), "xs": x(2, 3)}, **EXACT)


def test_loop_with_a_wrong_number_of_body_inputs_is_an_error():
    text = GROWING.replace("(n, t, x) <", "(n, t, x, x) <")
    with pytest.raises(InputError, match="the body takes 3 inputs, expected 4"):
        load_onnx(model(text))


def test_constants_are_seen_through_captures():
    module = load_onnx(model(IF))
    body = node_of(module, control.if_).bodies[0]
    add = next(node for node in body if node.op.name == "add")
    assert np.array_equal(constant_of(add.inputs[1]), [1, 2, 3, 4])


OPAQUE_BODY = """
<ir_version: 8, opset_import: ["" : 16, "custom" : 1]>
g (bool c, float[N] x, float[N] z) => (float[N] y) {
  y = custom.Apply <alpha = 2, body = b (float[M] v) => (float[M] r) { a = Add(v, z)  r = Neg(a) },
                    beta = "s"> (x)
}
"""


def test_opaque_node_keeps_bodies_captures_and_attribute_order():
    proto = parser.parse_model(OPAQUE_BODY)
    module = load_onnx(proto)
    node = node_of(module, opaque)
    (body,) = node.bodies
    assert [v.name for v in node.inputs] == ["x", "z"]
    assert node.attrs["num_captures"] == 1
    assert body.inputs[0].type.shape[0].as_symbol().defined
    emitted = to_proto(module).graph.node[0]
    assert [attr.name for attr in emitted.attribute] == ["alpha", "body", "beta"]
    assert list(emitted.input) == ["x"]
    inner = emitted.attribute[1].g
    assert len(inner.input) == 1
    assert "z" in inner.node[0].input


def test_opaque_body_of_a_loop_runs_in_onnx_runtime(monkeypatch):
    from regraft.frontends.onnx.importer import ImportTable

    find = ImportTable.find

    def without_loop(self, domain, op_type, opset):
        return None if op_type == "Loop" else find(self, domain, op_type, opset)

    monkeypatch.setattr(ImportTable, "find", without_loop)
    proto = model(GROWING)
    values = [np.array(3), x(1, 3)]
    module = load_onnx(proto)
    assert node_of(module, opaque).attrs["op_type"] == "Loop"
    assert mismatch(run_ort(to_proto(module), values), run_ort(proto, values), 0, 0) == ""


def test_constants_are_seen_through_loop_invariants():
    text = """
    g (int64 n, float[D] x) => (float[D] y, float[D] z) {
      t = Constant <value = bool {1}> ()
      k = Constant <value = float {2}> ()
      y, k2, z = Loop (n, t, x, k, x) <
        body = b (int64 i, bool c, float[D] v, float s, float[D] w)
          => (bool c2, float[D] v2, float s, float[D] w2) {
          c2 = Identity(c)  v2 = Mul(v, s)  w2 = Neg(w)
        }
      >
    }
    """
    module = load_onnx(model(text))
    body = node_of(module, control.loop).bodies[0]
    assert constant_of(body.inputs[3]) == 2
    assert captured_value(body.inputs[2]) is None
    assert captured_value(body.inputs[1]) is None
    assert_agree(model(text), {"n": np.array(3), "x": x(3)}, **EXACT)
