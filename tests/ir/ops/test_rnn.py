import numpy as np
import pytest

from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import InputError
from regraft.ir.evaluate import evaluate
from tests.conformance.agree import assert_agree, single
from tests.conformance.cases import run_ort

S, B, F, H = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# f32 gates accumulate over F + H products and S steps; tanh and sigmoid do not amplify
TOL = {"rtol": 64 * 2**-23 * S, "atol": 64 * 2**-23 * S}


def operands(op: str, D: int, *, lengths=None, peephole=False) -> dict:
    rng = np.random.default_rng(0)
    g = GATES[op] * H

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.7).astype(np.float32)

    inputs = {
        "x": normal(S, B, F),
        "w": normal(D, g, F),
        "r": normal(D, g, H),
        "b": normal(D, 2 * g),
        "lengths": None if lengths is None else np.array(lengths, np.int32),
        "h0": normal(D, B, H),
    }
    if op == "LSTM":
        inputs["c0"] = normal(D, B, H)
        inputs["p"] = normal(D, 3 * H) if peephole else None
    return inputs


def check(op: str, inputs: dict, opset: int = 14, **attrs) -> None:
    model = single(op, inputs, 3 if op == "LSTM" else 2, opset, hidden_size=H,
                   output_dtypes=(1, 1, 1), **attrs)  # fmt: skip
    assert_agree(model, inputs, **TOL)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, (5, 2, 4)])
def test_layer_agrees_with_onnx_runtime(op, direction, lengths):
    D = 2 if direction == "bidirectional" else 1
    check(op, operands(op, D, lengths=lengths), direction=direction)


@pytest.mark.parametrize("op", GATES)
def test_clip_bounds_what_activations_take(op):
    check(op, operands(op, 1), clip=0.3)


def test_lstm_peepholes_agree():
    check("LSTM", operands("LSTM", 1, peephole=True))


def test_lstm_coupled_gates_agree():
    check("LSTM", operands("LSTM", 1), input_forget=1)


@pytest.mark.parametrize("lbr", [0, 1])
@pytest.mark.parametrize("clip", [None, 0.4])
def test_gru_linear_before_reset_agrees(lbr, clip):
    attrs = {} if clip is None else {"clip": clip}
    check("GRU", operands("GRU", 2), direction="bidirectional", linear_before_reset=lbr, **attrs)


@pytest.mark.parametrize("opset", [7, 14, 22])
def test_parameters_go_to_the_activations_that_take_them(opset):
    check(
        "LSTM", operands("LSTM", 1), opset,
        activations=["HardSigmoid", "LeakyRelu", "ScaledTanh"],
        activation_alpha=[0.3, 0.1, 0.9], activation_beta=[0.4, 0.8],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["LeakyRelu", "ThresholdedRelu", "Elu", "Softsign", "Relu"])
def test_activation_defaults_are_those_of_onnx_runtime(name):
    inputs = operands("RNN", 1)
    inputs = {k: None if v is None else v * np.float32(0.3) for k, v in inputs.items()}
    check("RNN", inputs, activations=[name])


@pytest.mark.parametrize("name", ["Affine", "ScaledTanh"])
def test_activation_without_its_parameters_is_zero(name):
    inputs = operands("RNN", 1)
    model = single("RNN", inputs, 2, 14, hidden_size=H, activations=[name])
    module = load_onnx(model)
    values = {k: v for k, v in inputs.items() if v is not None}
    assert not np.any(evaluate(module, values)["y0"])
    expected = run_ort(model, list(values.values()))
    assert not np.any(expected[0])


def test_unknown_activation_is_named():
    model = single("RNN", operands("RNN", 1), 2, 14, hidden_size=H, activations=["Swoosh"])
    with pytest.raises(InputError, match="unknown activation `Swoosh`"):
        load_onnx(model)
