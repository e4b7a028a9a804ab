import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto as T

from regraft.frontends.onnx import load_onnx
from regraft.ir.axes import parse_rule
from regraft.ir.axis_binding import rule_of
from regraft.ir.errors import InputError
from regraft.ir.ops import quant
from tests.conformance.agree import assert_agree, single

EXACT = {"rtol": 0.0, "atol": 0.0}
RNG = np.random.default_rng(0)


def floats(*shape, dtype=np.float32):
    return (RNG.standard_normal(shape) * 3).astype(dtype)


def scales(*shape, dtype=np.float32):
    return RNG.uniform(0.02, 0.2, shape).astype(dtype)


def zeros_of(dtype, *shape):
    info = ml_dtypes.iinfo(dtype) if np.dtype(dtype).kind == "V" else np.iinfo(dtype)
    low, high = max(int(info.min), -20), min(int(info.max), 20)
    return RNG.integers(low, high, shape).astype(dtype)


def quantize_agrees(inputs, opset, code, **attrs):
    model = single("QuantizeLinear", inputs, 1, opset, output_dtypes=[code], **attrs)
    return assert_agree(model, inputs, **EXACT)[0]


@pytest.mark.parametrize(("dtype", "code"), [(np.uint8, T.UINT8), (np.int8, T.INT8)])
@pytest.mark.parametrize("opset", [10, 13, 21])
def test_quantize_per_tensor_agrees(dtype, code, opset):
    x = np.concatenate([floats(4, 5).reshape(-1), [1e9, -1e9, 0.25, 0.75]]).astype(np.float32)
    inputs = {"x": x, "s": np.array(0.5, np.float32), "z": zeros_of(dtype)}
    quantize_agrees(inputs, opset, code)


def test_quantize_rounds_half_to_even_and_saturates():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300], np.float32)
    inputs = {"x": x, "s": np.array(1, np.float32), "z": np.array(0, np.int8)}
    assert quantize_agrees(inputs, 13, T.INT8).tolist() == [0, 2, 2, 0, -2, 127, -128]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantize_per_axis_agrees(axis):
    x = floats(3, 4, 5)
    n = x.shape[axis]
    inputs = {"x": x, "s": scales(n), "z": zeros_of(np.uint8, n)}
    quantize_agrees(inputs, 13, T.UINT8, axis=axis)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [(np.int16, T.INT16), (np.uint16, T.UINT16)],
)
def test_quantize_to_other_widths_agrees(dtype, code):
    inputs = {"x": floats(3, 4), "s": scales(3), "z": zeros_of(dtype, 3)}
    quantize_agrees(inputs, 21, code, axis=0)


def test_quantize_in_blocks_agrees():
    inputs = {"x": floats(3, 8), "s": scales(3, 2), "z": zeros_of(np.int8, 3, 2)}
    quantize_agrees(inputs, 21, T.INT8, axis=1, block_size=4)


def test_quantize_of_halves_divides_in_f16():
    inputs = {"x": floats(64, dtype=np.float16), "s": scales(dtype=np.float16),
              "z": np.array(3, np.uint8)}  # fmt: skip
    quantize_agrees(inputs, 19, T.UINT8)


@pytest.mark.parametrize("saturate", [0, 1])
def test_quantize_to_f8_agrees(saturate):
    x = np.array([0.1, 1, 17.3, 500, -1000, np.inf], np.float32)
    inputs = {"x": x, "s": np.array(1, np.float32), "z": np.array(0, ml_dtypes.float8_e4m3fn)}
    quantize_agrees(inputs, 19, T.FLOAT8E4M3FN, saturate=saturate)


def test_output_dtype_names_the_type_without_a_zero_point():
    inputs = {"x": floats(3, 4), "s": scales(), "z": None}
    quantize_agrees(inputs, 21, T.INT8, output_dtype=T.INT8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, ml_dtypes.uint4])
def test_dequantize_per_axis_agrees(dtype):
    inputs = {"x": zeros_of(dtype, 3, 4), "s": scales(3), "z": zeros_of(dtype, 3)}
    # the runtime's interface takes no 4-bit arrays: the operand is stored in the model
    model = single(
        "DequantizeLinear", inputs, 1, 21, constants=("x", "z"), output_dtypes=[T.FLOAT], axis=0
    )
    assert_agree(model, inputs, **EXACT)


def test_dequantize_of_i32_has_no_zero_point():
    inputs = {"x": RNG.integers(-(2**30), 2**30, 16).astype(np.int32), "s": scales()}
    model = single("DequantizeLinear", inputs, 1, 13, output_dtypes=[T.FLOAT])
    assert_agree(model, inputs, **EXACT)


def test_microsoft_forms_are_the_standard_operators():
    inputs = {"x": floats(4, 3), "s": scales(), "z": zeros_of(np.int16)}
    model = single("QuantizeLinear", inputs, 1, 17, domain="com.microsoft", output_dtypes=[T.INT16])
    assert_agree(model, inputs, **EXACT)


@pytest.mark.parametrize(
    ("shape", "scale", "attrs", "rule"),
    [
        ((3, 4), (), {}, "*b, , -> *b"),
        ((3, 4), (1,), {}, "*b, 1, 1 -> *b"),
        ((3, 4), (4,), {"axis": -1}, "a0 a1, a1, a1 -> a0 a1"),
        ((3, 8), (3, 2), {"axis": 1, "block_size": 4},
         "a0 (c k!), a0 c, a0 c -> a0 (c k!)"),
        ((3, 7), (3, 2), {"axis": 1, "block_size": 4}, "a0 c!, a0 p!, a0 p! -> a0 c!"),
    ],
)  # fmt: skip
def test_axis_rule_follows_where_the_scale_lies(shape, scale, attrs, rule):
    inputs = {"x": floats(*shape), "s": scales(*scale), "z": zeros_of(np.int8, *scale)}
    module = load_onnx(single("QuantizeLinear", inputs, 1, 21, output_dtypes=[T.INT8], **attrs))
    node = next(node for node in module.graph if node.op is quant.quantize)
    found = rule_of(node)
    assert found == parse_rule(rule)


def test_axis_out_of_range_is_an_error():
    inputs = {"x": floats(3, 4), "s": scales(4), "z": zeros_of(np.int8, 4)}
    model = single("QuantizeLinear", inputs, 1, 13, output_dtypes=[T.INT8], axis=2)
    with pytest.raises(InputError, match="axis 2 is out of range for rank 2"):
        load_onnx(model)


@pytest.mark.parametrize("low", [-3.0, 0.5])
def test_dynamic_quantize_agrees(low):
    inputs = {"x": RNG.uniform(low, 7, (3, 4)).astype(np.float32)}
    model = single(
        "DynamicQuantizeLinear", inputs, 3, 13, output_dtypes=[T.UINT8, T.FLOAT, T.UINT8]
    )
    assert_agree(model, inputs, **EXACT)


def u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape):
    return RNG.integers(-128, 128, shape).astype(np.int8)


def test_matmul_integer_agrees():
    inputs = {
        "a": u8(2, 3, 5),
        "b": i8(5, 4),
        "az": np.array(7, np.uint8),
        "bz": zeros_of(np.int8, 4),
    }
    assert_agree(single("MatMulInteger", inputs, 1, 13, output_dtypes=[T.INT32]), inputs, **EXACT)


def test_qlinear_matmul_with_column_scales_agrees():
    inputs = {
        "a": u8(3, 5), "as": scales(), "az": np.array(7, np.uint8),
        "b": i8(5, 4), "bs": scales(4), "bz": zeros_of(np.int8, 4),
        "ys": np.array(4, np.float32), "yz": np.array(120, np.uint8),
    }  # fmt: skip
    assert_agree(single("QLinearMatMul", inputs, 1, 13), inputs, **EXACT)


CONV = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}


@pytest.mark.parametrize("group", [1, 2])
def test_conv_integer_agrees(group):
    inputs = {"x": u8(2, 4, 7, 8), "w": u8(6, 4 // group, 3, 2), "xz": np.array(9, np.uint8),
              "wz": np.array(3, np.uint8)}  # fmt: skip
    model = single("ConvInteger", inputs, 1, 13, output_dtypes=[T.INT32], group=group, **CONV)
    assert_agree(model, inputs, **EXACT)


@pytest.mark.parametrize("group", [1, 4])
def test_qlinear_conv_with_channel_scales_and_bias_agrees(group):
    inputs = {
        "x": u8(2, 4, 7, 8), "xs": scales(), "xz": np.array(9, np.uint8),
        "w": i8(8, 4 // group, 3, 2), "ws": scales(8), "wz": np.zeros(8, np.int8),
        "ys": np.array(2, np.float32), "yz": np.array(100, np.uint8),
        "b": RNG.integers(-500, 500, 8).astype(np.int32),
    }  # fmt: skip
    assert_agree(single("QLinearConv", inputs, 1, 13, group=group, **CONV), inputs, **EXACT)
