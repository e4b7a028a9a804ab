"""Element type conversion: tables of the ONNX specification, and ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from regraft.ir.convert import convert
from regraft.ir.types import DType
from tests.conformance.cases import run_ort

F8 = {
    DType.F8E4M3FN: TensorProto.FLOAT8E4M3FN,
    DType.F8E4M3FNUZ: TensorProto.FLOAT8E4M3FNUZ,
    DType.F8E5M2: TensorProto.FLOAT8E5M2,
    DType.F8E5M2FNUZ: TensorProto.FLOAT8E5M2FNUZ,
}


@pytest.mark.parametrize("target", list(F8))
@pytest.mark.parametrize("saturate", [True, False])
def test_f8_agrees_with_onnx_runtime(target: DType, saturate: bool) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            rng.standard_normal(200) * 10.0 ** rng.integers(-6, 6, 200),
            [0, 448, 464, 465, 480, 57344, 61440, 61441, 1e9, -1e9, np.inf, -np.inf, np.nan],
        ]
    ).astype(np.float32)
    if not saturate:
        # within one step above the largest value ONNX Runtime 1.31 contradicts the specification:
        # 480 gives 448 in e4m3fn, 61441 gives NaN instead of infinity in e5m2
        largest = float(ml_dtypes.finfo(target.numpy).max)
        x = x[~((np.abs(x) > largest) & (np.abs(x) < largest * 1.15))]
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=F8[target], saturate=int(saturate)),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [x.size])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [x.size])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (expected,) = run_ort(model, [x])
    result = convert(x, target, saturate=saturate)
    assert result.dtype == target.numpy
    np.testing.assert_array_equal(result.astype(np.float32), expected)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (DType.F8E4M3FN, [448, 448, np.nan, np.nan, np.nan, np.nan]),
        (DType.F8E5M2, [448, 448, 512, 57344, np.inf, np.inf]),
    ],
)
def test_f8_without_saturation_rounds_before_it_overflows(
    target: DType, expected: list[float]
) -> None:
    x = np.array([448, 464, 480, 61439, 61441, np.inf], np.float32)
    result = convert(x, target, saturate=False).astype(np.float32)
    np.testing.assert_array_equal(result, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("round_mode", "saturate", "codes"),
    [
        ("up", True, [0, 127, 128, 128, 128, 254, 254, 255]),
        ("down", True, [0, 127, 127, 127, 127, 254, 254, 255]),
        ("nearest", True, [0, 127, 127, 128, 128, 254, 254, 255]),
        ("nearest", False, [255, 127, 127, 128, 128, 255, 255, 255]),
    ],
)
def test_power_of_two_floats(round_mode: str, saturate: bool, codes: list[int]) -> None:
    x = np.array([0, 1, 1.25, 1.5, 1.75, 1.75 * 2.0**127, np.inf, np.nan])
    result = convert(x, DType.F8E8M0, saturate=saturate, round_mode=round_mode)
    assert result.view(np.uint8).tolist() == codes


def test_unknown_round_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="round_mode `sideways`"):
        convert(np.ones(1), DType.F8E8M0, round_mode="sideways")


def test_integers_wrap() -> None:
    x = np.array([200, -200, 300, 17], np.int32)
    assert convert(x, DType.I8).tolist() == [-56, 56, 44, 17]
    assert convert(x, DType.U8).tolist() == [200, 56, 44, 17]
    assert convert(x, DType.I4).astype(int).tolist() == [-8, -8, -4, 1]
    assert convert(x, DType.U2).astype(int).tolist() == [0, 0, 0, 1]


def test_floats_truncate_to_integers() -> None:
    x = np.array([1.9, -1.9, 2.5], np.float32)
    assert convert(x, DType.I64).tolist() == [1, -1, 2]
    assert convert(x, DType.I4).astype(int).tolist() == [1, -1, 2]
    assert convert(x.astype(ml_dtypes.bfloat16), DType.I8).tolist() == [1, -1, 2]


def test_anything_but_zero_is_true() -> None:
    x = np.array([0.0, -0.0, 0.5, np.nan], np.float32)
    assert convert(x, DType.BOOL).tolist() == [False, False, True, True]
    assert convert(np.array([0, 1], ml_dtypes.int4), DType.BOOL).tolist() == [False, True]


def test_strings_agree_with_onnx_runtime() -> None:
    x = np.array([0.5, 9.7, 1e10, 1e-7, np.nan, np.inf, -np.inf, 3.1415927, 1 / 3], np.float32)
    assert convert(x, DType.STRING).tolist() == cast(x, TensorProto.FLOAT, TensorProto.STRING)
    truths = np.array([True, False])
    assert convert(truths, DType.STRING).tolist() == ["1", "0"]
    texts = np.array(["100.5", "1e3", "+INF", "-inf", "NaN"], object)
    expected = cast(texts, TensorProto.STRING, TensorProto.FLOAT)
    np.testing.assert_array_equal(convert(texts, DType.F32), expected)
    assert convert(np.array(["100", "-3", "2.718"], object), DType.I64).tolist() == [100, -3, 2]


def cast(x: np.ndarray, source: int, target: int) -> list[object]:
    """Returns what ONNX Runtime's Cast gives."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=target)], "g",
        [helper.make_tensor_value_info("x", source, [x.size])],
        [helper.make_tensor_value_info("y", target, [x.size])],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 13)]
    return list(run_ort(helper.make_model(graph, opset_imports=opsets, ir_version=8), [x])[0])
