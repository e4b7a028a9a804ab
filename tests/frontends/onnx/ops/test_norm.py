"""Normalizations of every version: ONNX Runtime, our files and the evaluator agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.errors import TypeInferenceError
from regraft.ir.evaluate import evaluate
from regraft.ir.ops.norm import layer_norm, rms_norm
from tests.single_node import check_agreement, single_node

# sums of tens of terms, a division and a root, in another order
RTOL = 64 * float(np.finfo(np.float32).eps)
RTOL_F16 = 4 * float(np.finfo(np.float16).eps)


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def statistics(num: int) -> list[np.ndarray[Any, Any]]:
    return [normal(1, num), normal(2, num), normal(3, num), np.abs(normal(4, num)) + 0.5]


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_batch_norm_agrees(opset: int, shape: tuple[int, ...]) -> None:
    operands: list[Any] = [normal(0, *shape), *statistics(3)]
    proto = single_node(
        "BatchNormalization", opset, operands, constant=(1, 2, 3, 4), symbolic=True, epsilon=0.01
    )
    check_agreement(proto, operands, rtol=RTOL, constant=(1, 2, 3, 4))


def test_batch_norm_7_per_activation_agrees() -> None:
    shape = (2, 3, 4)
    operands: list[Any] = [normal(0, *shape), *(s.reshape(3, 4) for s in statistics(12))]
    proto = single_node("BatchNormalization", 7, operands, spatial=0)
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize(("opset", "attrs", "num_outputs"), [
    (15, {"training_mode": 1}, 3), (9, {}, 5), (6, {"is_test": 0}, 1),
])  # fmt: skip
def test_batch_norm_in_training_is_opaque(
    opset: int, attrs: dict[str, int], num_outputs: int
) -> None:
    operands: list[Any] = [normal(0, 2, 3, 4), *statistics(3)]
    proto = single_node("BatchNormalization", opset, operands, num_outputs=num_outputs, **attrs)
    assert [node.op for node in load_onnx(proto).graph] == [opaque]


def test_batch_norm_states_the_operand_that_does_not_fit() -> None:
    operands: list[Any] = [normal(0, 2, 3, 4), *statistics(3)[:3], np.ones(4, np.float32)]
    with pytest.raises(TypeInferenceError, match=r"`var` has shape \[4\], x has 3 channels"):
        load_onnx(single_node("BatchNormalization", 15, operands))


@pytest.mark.parametrize("opset", [7, 13, 22])
def test_instance_norm_agrees(opset: int) -> None:
    operands: list[Any] = [normal(0, 2, 3, 4, 5), normal(1, 3), normal(2, 3)]
    proto = single_node("InstanceNormalization", opset, operands, symbolic=True, epsilon=0.01)
    check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("opset", "gains"), [(18, 2), (21, 6)])
def test_group_norm_agrees(opset: int, gains: int, symbolic: bool) -> None:
    operands: list[Any] = [normal(0, 2, 6, 3, 4), normal(1, gains), normal(2, gains)]
    proto = single_node(
        "GroupNormalization", opset, operands, symbolic=symbolic, constant=(1, 2), num_groups=2
    )
    check_agreement(proto, operands, rtol=RTOL, constant=(1, 2))


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("axis", [-1, -2, 1, 2])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_layer_norm_agrees(opset: int, axis: int, num_outputs: int) -> None:
    shape = (2, 4, 5)
    tail = shape[axis:]
    operands: list[Any] = [normal(0, *shape), normal(1, *tail), normal(2, *tail)]
    proto = single_node(
        "LayerNormalization", opset, operands, constant=(1, 2), symbolic=True,
        num_outputs=num_outputs, axis=axis,
    )  # fmt: skip
    module = check_agreement(proto, operands, rtol=RTOL, constant=(1, 2))
    node = next(node for node in module.graph if node.op is layer_norm)
    assert node.attrs["axis"] == (axis - 3 if axis > 0 else axis)  # counts from the end


@pytest.mark.parametrize("gain", [(1,), (4, 1), (2, 1, 5)])
def test_layer_norm_with_a_gain_that_broadcasts_agrees(gain: tuple[int, ...]) -> None:
    operands: list[Any] = [normal(0, 2, 4, 5), normal(1, *gain)]
    check_agreement(single_node("LayerNormalization", 17, operands), operands, rtol=RTOL)


def test_layer_norm_of_f16_computes_in_f32() -> None:
    # the squares overflow f16
    x = (normal(0, 2, 64) * 500).astype(np.float16)
    operands: list[Any] = [x, np.ones(64, np.float16), np.zeros(64, np.float16)]
    for opset in (13, 17):
        proto = single_node("LayerNormalization", opset, operands, symbolic=True)
        check_agreement(proto, operands, rtol=RTOL_F16)


def test_layer_norm_rejects_an_axis_out_of_range() -> None:
    operands: list[Any] = [normal(0, 2, 4), normal(1, 4)]
    with pytest.raises(TypeInferenceError, match="axis -3 is out of range for rank 2"):
        load_onnx(single_node("LayerNormalization", 17, operands, axis=-3))


@pytest.mark.parametrize(
    ("op_type", "opset"),
    [
        ("SimplifiedLayerNormalization", 13),
        ("SimplifiedLayerNormalization", 23),
        ("RMSNormalization", 23),
    ],
)
@pytest.mark.parametrize("axis", [-1, -2])
def test_rms_norm_agrees(op_type: str, opset: int, axis: int) -> None:
    shape = (2, 4, 5)
    operands: list[Any] = [normal(0, *shape), normal(1, *shape[axis:])]
    proto = single_node(op_type, opset, operands, constant=(1,), symbolic=True, axis=axis)
    module = check_agreement(proto, operands, rtol=RTOL, constant=(1,))
    assert [node.op for node in module.graph][-1] is rms_norm


def test_simplified_layer_norm_gives_the_inverse_deviation_too() -> None:
    operands: list[Any] = [normal(0, 2, 4, 5), normal(1, 5)]
    for opset in (13, 23):
        proto = single_node("SimplifiedLayerNormalization", opset, operands, num_outputs=2)
        check_agreement(proto, operands, rtol=RTOL)


@pytest.mark.parametrize("op_type", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("skip", [(2, 3, 8), (1, 3, 8), (3, 8)])
def test_skip_norms_agree_in_all_results(op_type: str, bias: bool, skip: tuple[int, ...]) -> None:
    operands: list[Any] = [normal(0, 2, 3, 8), normal(1, *skip), normal(2, 8)]
    if op_type == "SkipLayerNormalization":
        operands.append(normal(3, 8))
    if bias:
        operands.append(normal(4, 8))
    fixed = tuple(range(2, len(operands)))
    proto = single_node(
        op_type, 13, operands, constant=fixed, domain="com.microsoft", num_outputs=4, epsilon=1e-3
    )
    # the runtime leaves the statistics unset: only the norm and the sum are compared
    for index in (1, 2):
        proto.graph.node[0].output[index] = ""
    del proto.graph.output[1:3]
    check_agreement(proto, operands, rtol=RTOL, constant=fixed)


@pytest.mark.parametrize("size", [1, 3, 9])  # the runtime takes odd sizes only
def test_local_response_norm_agrees(size: int) -> None:
    x = normal(0, 2, 7, 3, 4)
    proto = single_node("LRN", 7, [x], symbolic=True, size=size, alpha=0.5, beta=0.6, bias=1.5)
    check_agreement(proto, [x], rtol=RTOL)


@pytest.mark.parametrize("size", [2, 4])
def test_local_response_norm_of_even_size_follows_the_definition(size: int) -> None:
    x = normal(0, 2, 7, 3, 4)
    module = load_onnx(single_node("LRN", 13, [x], size=size, alpha=0.5, beta=0.6, bias=1.5))
    expected = np.empty(x.shape)
    for c in range(7):
        first = max(0, c - int(np.floor((size - 1) / 2)))
        last = min(6, c + int(np.ceil((size - 1) / 2)))
        square = (x[:, first : last + 1].astype(np.float64) ** 2).sum(1)
        expected[:, c] = x[:, c] / (1.5 + 0.5 / size * square) ** 0.6
    (result,) = evaluate(module, {"x0": x}).values()
    np.testing.assert_allclose(result, expected, rtol=RTOL)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_lp_norm_agrees(p: int, axis: int) -> None:
    x = normal(0, 2, 3, 4)
    check_agreement(single_node("LpNormalization", 13, [x], p=p, axis=axis), [x], rtol=RTOL)


@pytest.mark.parametrize("axes", [None, [0, 2, 3], [1], [-1]])
def test_mean_variance_norm_agrees(axes: list[int] | None) -> None:
    x = normal(0, 2, 3, 4, 5)
    attrs = {} if axes is None else {"axes": axes}
    for opset in (9, 13):
        proto = single_node("MeanVarianceNormalization", opset, [x], symbolic=True, **attrs)
        check_agreement(proto, [x], rtol=RTOL)


@pytest.mark.parametrize(
    ("profile", "opset", "native"),
    [("onnx", None, False), ("ort-cpu", None, True), ("ort-cpu", 17, False), ("onnx", 23, True)],
)
def test_rms_norm_raises_the_opset_for_onnx_runtime_and_is_spelled_out_below(
    profile: str, opset: int | None, native: bool
) -> None:
    operands: list[Any] = [normal(0, 2, 4), normal(1, 4)]
    module = load_onnx(single_node("SimplifiedLayerNormalization", 13, operands))
    proto = to_proto(module, profile=profile, opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    kinds = {node.op_type for node in proto.graph.node}
    assert (kinds == {"RMSNormalization"}) == native
    assert proto.opset_import[0].version == (opset or (23 if native else 13))
