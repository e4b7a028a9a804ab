import numpy as np
import pytest
from onnx import TensorProto as T

from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import InputError
from tests.conformance.agree import assert_agree, single

RNG = np.random.default_rng(0)
# an f32 transform of n <= 16 values of size 1 sums n products in any order
TOL = {"rtol": 16 * 2**-23, "atol": 64 * 2**-23}


def real(*shape):
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def types(model):
    return [str(value.type) for value in load_onnx(model).graph.outputs]


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("axis", [1, 2])
def test_dft_of_real_signals_agrees(opset, onesided, axis):
    inputs = {"x": real(2, 8, 6, 1)}
    if opset == 17:
        model = single("DFT", inputs, 1, 17, axis=axis, onesided=onesided)
    else:
        inputs |= {"n": None, "axis": np.array(axis, np.int64)}
        model = single("DFT", inputs, 1, 20, constants=("axis",), onesided=onesided)
    assert_agree(model, inputs, **TOL)
    shape = [2, 8, 6, 2]
    shape[axis] = shape[axis] // 2 + 1 if onesided else shape[axis]
    assert types(model) == [f"f32{shape}"]


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("length", [None, 5, 16])
def test_dft_of_complex_signals_with_a_length_agrees(inverse, length):
    n = None if length is None else np.array(length, np.int64)
    inputs = {"x": real(2, 8, 2), "n": n}
    model = single("DFT", inputs, 1, 17, constants=("n",) if length else (), inverse=inverse)
    assert_agree(model, inputs, **TOL)
    assert types(model) == [f"f32[2, {length or 8}, 2]"]


def test_dft_over_the_complex_axis_is_an_error():
    inputs = {"x": real(2, 8, 2)}
    with pytest.raises(InputError, match="axis 2 is no signal axis of rank 3"):
        load_onnx(single("DFT", inputs, 1, 17, axis=2))


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("with_window", [True, False])
def test_stft_agrees(onesided, with_window):
    inputs = {
        "x": real(2, 32, 1),
        "step": np.array(5, np.int64),
        "w": real(8) if with_window else None,
        "n": np.array(8, np.int64),
    }
    model = single("STFT", inputs, 1, 17, constants=("step", "n"), onesided=onesided)
    assert_agree(model, inputs, **TOL)
    assert types(model) == [f"f32[2, 5, {5 if onesided else 8}, 2]"]


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("stored", [True, False])
def test_window_agrees(op, periodic, stored):
    inputs = {"size": np.array(10, np.int64)}
    constants = ("size",) if stored else ()
    model = single(
        op, inputs, 1, 17, constants=constants, output_dtypes=[T.FLOAT], periodic=periodic
    )
    assert_agree(model, inputs, rtol=4 * 2**-23, atol=4 * 2**-23)
    (shape,) = [value.shape for value in load_onnx(model).graph.outputs]
    assert shape == (10,) if stored else shape[0].as_symbol().defined


def test_mel_weight_matrix_agrees():
    inputs = {
        "bins": np.array(8, np.int64), "n": np.array(64, np.int64),
        "rate": np.array(8192, np.int64),
        "low": np.array(50, np.float32), "high": np.array(3900, np.float32),
    }  # fmt: skip
    model = single("MelWeightMatrix", inputs, 1, 17, output_dtypes=[T.FLOAT],
                   constants=("bins", "n", "rate"))  # fmt: skip
    assert_agree(model, inputs, rtol=4 * 2**-23, atol=0)
    assert types(model) == ["f32[33, 8]"]
