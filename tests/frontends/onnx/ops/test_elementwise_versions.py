"""Element-wise operators of every opset: source file, saved file and evaluator agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate
from tests.conformance.cases import mismatch, run_ort

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((2, 3, 4)) * 2).astype(np.float32)
Y = (RNG.standard_normal((3, 1)) * 2).astype(np.float32)
I = RNG.integers(-9, 9, (2, 3)).astype(np.int32)  # noqa: E741 (an integer tensor)
J = np.array([2, -3, 4], np.int32)
U = np.array([[1, 8, 200]], np.uint8)
T = np.array([True, False, True])
NAN = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32)

# a few units in the last place of f32: exp, tanh, erf, pow differ between runtimes by that much
RTOL = 16 * float(np.finfo(np.float32).eps)


def model(
    op_type: str,
    opset: int,
    inputs: list[Any],
    constants: dict[int, Any] | None = None,
    *,
    num_outputs: int = 1,
    domain: str = "",
    **attrs: Any,
) -> onnx.ModelProto:
    """Returns a single-node model; `constants` gives operands by position as initializers."""
    constants = constants or {}
    names, infos, initializers = [], [], []
    arrays = iter(inputs)
    for idx in range(len(inputs) + len(constants)):
        name = f"x{idx}"
        if idx in constants:
            if constants[idx] is None:
                names.append("")
                continue
            initializers.append(onnx.numpy_helper.from_array(np.asarray(constants[idx]), name))
        else:
            array = next(arrays)
            code = helper.np_dtype_to_tensor_dtype(array.dtype)
            # named sizes of run time, except that an axis of 1 stays static
            dims = [
                size if size == 1 else f"d{idx}_{axis}" for axis, size in enumerate(array.shape)
            ]
            infos.append(helper.make_tensor_value_info(name, code, dims))
        names.append(name)
    outputs = [f"y{idx}" for idx in range(num_outputs)]
    node = helper.make_node(op_type, names, outputs, domain=domain, **attrs)
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "g", infos, results, initializers)
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def check(proto: onnx.ModelProto, inputs: list[Any], rtol: float = RTOL) -> None:
    """Asserts that ONNX Runtime on the source, on our file, and the evaluator agree."""
    expected = run_ort(proto, inputs)
    module = load_onnx(proto)
    assert all(node.op is not opaque for node in module.graph.walk())
    saved = to_proto(module)
    assert mismatch(run_ort(saved, inputs), expected, rtol, rtol) == ""
    names = [str(value.name) for value in module.graph.inputs]
    values = evaluate(module, dict(zip(names, inputs, strict=True)))
    assert mismatch(values.values(), expected, rtol, rtol) == ""


UNARY = {
    7: "Neg Abs Sqrt Reciprocal Exp Log Floor Ceil Tanh Sigmoid Relu Elu Selu LeakyRelu HardSigmoid"
    " Softplus Softsign Identity Sin Cos Tan Asin Acos Atan",
    9: "Sign Sinh Cosh Asinh Acosh Atanh Erf Shrink IsNaN",
    10: "IsInf ThresholdedRelu",
    11: "Round Clip",
    12: "Celu",
    14: "HardSwish",
}


@pytest.mark.parametrize(
    ("op_type", "opset"), [(name, v) for v, names in UNARY.items() for name in names.split()]
)
def test_unary_at_its_oldest_opset(op_type: str, opset: int) -> None:
    x = np.concatenate([X.reshape(-1), [0.5, -0.5, 1.5, 2.5, 0, 1, -1]]).astype(np.float32)
    if op_type in ("IsNaN", "IsInf"):
        x = NAN
    check(model(op_type, opset, [x]), [x])


@pytest.mark.parametrize(
    ("op_type", "opset"),
    [(name, v) for name in ("Add", "Sub", "Mul", "Div", "Pow", "PRelu") for v in (7, 13)]
    + [(name, v) for name in ("Less", "Greater") for v in (7, 9, 13)]
    + [(name, v) for name in ("Min", "Max", "Sum", "Mean") for v in (8, 13)]
    + [("LessOrEqual", 12), ("GreaterOrEqual", 12)],
)
def test_binary_broadcasts(op_type: str, opset: int) -> None:
    check(model(op_type, opset, [X, Y]), [X, Y])


@pytest.mark.parametrize("op_type", ["Min", "Max", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 3])
def test_variadic(op_type: str, count: int) -> None:
    inputs = [X, Y, X[:1]][:count]
    check(model(op_type, 8, inputs), inputs)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_integer_arithmetic_truncates_and_wraps(op_type: str) -> None:
    check(model(op_type, 7, [I, J]), [I, J])
    big = np.array([2**31 - 1, -(2**31), 7], np.int32)
    if op_type != "Div":
        check(model(op_type, 7, [big, J]), [big, J])


@pytest.mark.parametrize(
    ("base", "exponent"),
    [(X, np.array(2, np.int64)), (I, np.array(3, np.int32)), (np.abs(I), np.float32(0.5))],
)
def test_pow_of_mixed_types_keeps_the_type_of_the_base(base: Any, exponent: Any) -> None:
    exponent = np.asarray(exponent)
    check(model("Pow", 12, [base, exponent]), [base, exponent])


@pytest.mark.parametrize(("a", "b", "fmod"), [(I, J, 0), (I, J, 1), (X, Y, 1)])
def test_mod(a: Any, b: Any, fmod: int) -> None:
    check(model("Mod", 10, [a, b], fmod=fmod), [a, b])


def test_mod_of_floats_with_the_sign_of_the_divisor() -> None:
    a = np.array([5.5, -5.5, 5.5, -5.5, 0.0, -3.0, 2.0, -2.0], np.float32)
    b = np.array([3.0, 3.0, -3.0, -3.0, -2.0, 3.0, np.inf, np.inf], np.float32)
    module = load_onnx(model("Mod", 28, [a, b]))
    (result,) = run_ort(to_proto(module), [a, b])
    np.testing.assert_array_equal(result, np.array([2.5, 0.5, -0.5, -2.5, -0.0, 0, 2, np.inf]))
    assert mismatch(evaluate(module, {"x0": a, "x1": b}).values(), [result], 0, 0) == ""


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logical(op_type: str) -> None:
    other = np.array([[True], [False]])
    check(model(op_type, 7, [T, other]), [T, other])
    check(model("Not", 1 + 6, [T]), [T])


@pytest.mark.parametrize(("a", "b", "opset"), [(I, J, 7), (T, T[::-1].copy(), 7), (X, X, 11)])
def test_equal(a: Any, b: Any, opset: int) -> None:
    check(model("Equal", opset, [a, b]), [a, b])


def test_where_keeps_strings() -> None:
    a = np.array([["a"], ["b"]], object)
    b = np.array(["x", "y", "z"], object)
    check(model("Where", 9, [T, a, b]), [T, a, b])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift_of_unsigned(direction: str) -> None:
    amount = np.array([1, 2, 7], np.uint8)
    check(model("BitShift", 11, [U, amount], direction=direction), [U, amount])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift_of_signed_is_lowered_to_unsigned(direction: str) -> None:
    x = np.array([7, -7, -(2**31), 2**31 - 1, -1, 5, -5], np.int32)
    y = np.array([1, 1, 31, 3, 4, 32, -1], np.int32)
    module = load_onnx(model("BitShift", 28, [x, y], direction=direction))
    expected = {
        "LEFT": [14, -14, 0, -8, -16, 0, 0],
        "RIGHT": [3, -4, -1, 2**28 - 1, -1, 0, -1],
    }[direction]
    assert evaluate(module, {"x0": x, "x1": y})["y0"].tolist() == expected
    assert run_ort(to_proto(module), [x, y])[0].tolist() == expected


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, [np.nan, 3.4028235e38, -3.4028235e38, 0.5]),
        ({"min": 0.0, "max": 6.0}, [np.nan, 6, 0, 0.5]),
    ],
)
def test_clip_6_has_finite_default_bounds(attrs: dict[str, float], expected: list[float]) -> None:
    proto = model("Clip", 6 + 1, [NAN], **attrs)
    module = load_onnx(proto)
    result = evaluate(module, {"x0": NAN})["y0"]
    np.testing.assert_array_equal(result, np.array(expected, np.float32))
    finite = NAN[1:]
    check(model("Clip", 7, [finite], **attrs), [finite])


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8, np.float16])
def test_clip_bounds_become_attributes_when_constant(dtype: Any) -> None:
    x = np.array([-5, 0, 5, 9], dtype)
    proto = model("Clip", 13, [x], {1: dtype(-2), 2: dtype(6)})
    (node,) = (n for n in load_onnx(proto).graph if n.op.name == "clip")
    assert (node.attrs["min"], node.attrs["max"]) == (-2, 6)
    check(proto, [x])
    check(model("Clip", 13, [x], {1: None, 2: dtype(6)}), [x])
    bounds = [np.array(-2, dtype), np.array(6, dtype)]
    check(model("Clip", 13, [x, *bounds]), [x, *bounds])


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_at_inference_is_identity(opset: int) -> None:
    attrs = {"ratio": 0.3} if opset < 12 else {}
    check(model("Dropout", opset, [X], **attrs), [X])
    check(model("Dropout", opset, [X], num_outputs=2, **attrs), [X])


def test_dropout_in_training_mode_is_opaque_unless_it_drops_nothing() -> None:
    ratio, training = np.float32(0.5), np.array(True)
    kept = load_onnx(model("Dropout", 13, [X], {1: ratio, 2: training}))
    assert any(node.op is opaque for node in kept.graph)
    check(model("Dropout", 13, [X], {1: np.float32(0), 2: training}, num_outputs=2), [X])


def test_eye_like_trilu_and_running_sums() -> None:
    square = X[0]
    check(model("EyeLike", 9, [square], k=1, dtype=TensorProto.INT64), [square])
    check(model("Trilu", 14, [X], {1: np.array(-1)}, upper=0), [X])
    k = np.array(1)
    check(model("Trilu", 14, [X, k]), [X, k])
    for exclusive in (0, 1):
        for reverse in (0, 1):
            attrs = {"exclusive": exclusive, "reverse": reverse}
            check(model("CumSum", 11, [X], {1: np.array(-2)}, **attrs), [X])
    axis = np.array(1, np.int32)
    check(model("CumSum", 11, [X, axis]), [X, axis])


def test_cumulative_axis_out_of_range_is_refused() -> None:
    with pytest.raises(RegraftError, match="axis 3 is out of range for rank 3"):
        load_onnx(model("CumSum", 14, [X], {1: np.array(3)}))


@pytest.mark.parametrize(
    ("start", "limit", "delta"),
    [(0, 5, 1), (5, -2, -3), (3, 3, 1), (0.5, 3.0, 0.7), (np.int32(1), np.int32(9), np.int32(4))],
)
def test_range(start: Any, limit: Any, delta: Any) -> None:
    inputs = [
        np.asarray(v, np.float32 if isinstance(v, float) else None) for v in (start, limit, delta)
    ]
    inputs = [item.astype(inputs[-1].dtype) for item in inputs]
    check(model("Range", 11, inputs), inputs)
    check(model("Range", 11, [], dict(enumerate(inputs))), [])


def test_constant_of_shape_reads_its_shape_at_run_time() -> None:
    shape = np.array([2, 3])
    check(model("ConstantOfShape", 9, [shape]), [shape])
    value = helper.make_tensor("v", TensorProto.INT32, [1], [7])
    check(model("ConstantOfShape", 9, [], {0: shape}, value=value), [])
    check(model("ConstantOfShape", 9, [], {0: np.zeros(0, np.int64)}), [])


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"value_float": 0.1}, np.float32(0.1)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value_string": "a"}, np.array("a", object)),
        ({"value_strings": ["a", "bc"]}, np.array(["a", "bc"], object)),
        ({"value": onnx.numpy_helper.from_array(X)}, X),
    ],
)
def test_constant_forms(attrs: dict[str, Any], expected: Any) -> None:
    module = load_onnx(model("Constant", 12, [], **attrs))
    assert mismatch(evaluate(module, {}).values(), [np.asarray(expected)], 0, 0) == ""
    assert mismatch(run_ort(to_proto(module), []), [np.asarray(expected)], 0, 0) == ""


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
def test_sparse_constant_is_made_dense(indices: Any) -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [2], [3.0, 4.0]),
        onnx.numpy_helper.from_array(np.array(indices), "i"),
        [2, 3],
    )
    module = load_onnx(model("Constant", 11, [], sparse_value=sparse))
    assert evaluate(module, {})["y0"].tolist() == [[0, 3, 0], [0, 0, 4]]


def test_large_constants_are_weights() -> None:
    big = np.zeros((300, 2), np.float32)
    module = load_onnx(model("Constant", 13, [], value=onnx.numpy_helper.from_array(big)))
    assert [node.op.name for node in module.graph] == ["weight"]


def test_constant_without_a_value_is_refused() -> None:
    with pytest.raises(RegraftError, match="no value attribute"):
        load_onnx(model("Constant", 13, []))


@pytest.mark.parametrize("op_type", ["Gelu", "FastGelu", "QuickGelu"])
def test_contrib_gelu(op_type: str) -> None:
    check(model(op_type, 17, [X], domain="com.microsoft"), [X])


def test_contrib_gelu_with_bias() -> None:
    bias = X[0, 0]
    check(model("BiasGelu", 17, [X, bias], domain="com.microsoft"), [X, bias])
    check(model("FastGelu", 17, [X, bias], domain="com.microsoft"), [X, bias])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_native_from_opset_20_and_decomposed_before(approximate: str) -> None:
    proto = model("Gelu", 20, [X], approximate=approximate)
    check(proto, [X])
    expected = run_ort(proto, [X])
    contrib = {"none": "Gelu", "tanh": "FastGelu"}[approximate]
    older = to_proto(load_onnx(model(contrib, 17, [X], domain="com.microsoft")))
    assert older.opset_import[0].version == 17
    assert mismatch(run_ort(older, [X]), expected, RTOL, RTOL) == ""


@pytest.mark.parametrize("op_type", ["Mish", "HardSwish"])
def test_activations_have_a_form_at_opset_13(op_type: str) -> None:
    module = load_onnx(model(op_type, 18, [X]))
    older = to_proto(module, opset=13)
    assert mismatch(run_ort(older, [X]), evaluate(module, {"x0": X}).values(), RTOL, RTOL) == ""


def test_swish_and_swiglu() -> None:
    gate, value = X, X[::-1].copy()
    module = load_onnx(model("SwiGLU", 28, [gate, value], alpha=1.5))
    expected = gate / (1 + np.exp(-1.5 * gate)) * value
    assert (
        mismatch(evaluate(module, {"x0": gate, "x1": value}).values(), [expected], RTOL, RTOL) == ""
    )
    assert mismatch(run_ort(to_proto(module), [gate, value]), [expected], RTOL, RTOL) == ""
